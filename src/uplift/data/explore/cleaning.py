"""What cleaning would do to sampled rows, step by step, and the languages they are in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from uplift.data.clean.step import CleaningStep, Verdict
from uplift.data.explore.findings import Cleaning, Languages, LanguageShare, RowShown, RuleFound
from uplift.data.explore.measures import cut, shown
from uplift.data.explore.sample import TextRow

MOST_ROWS = 4000
MOST_CHARACTERS = 3_000_000
EXAMPLES = 3
AROUND = 70
"""Characters shown before and after a change."""
SURE = 0.65
LANGUAGE_ROWS = 2000
LANGUAGE_CHARACTERS = 400
"""Characters at the start of a text by which its language is told."""
RARE_EXAMPLES = 3

Detect = Callable[[str], tuple[str, float]]


def cleaning_of(rows: Sequence[TextRow], steps: dict[str, CleaningStep]) -> Cleaning:
    """Each step by itself on each row: its rules by how many rows they strike."""
    found: dict[tuple[str, str, bool], list[Any]] = {}
    for name, step in steps.items():
        for index, row in enumerate(rows):
            verdict = step.judge(index, row.text)
            for rule, times in verdict.counts.items():
                entry = found.setdefault((name, rule, verdict.text is None), [0, 0, []])
                entry[0] += 1
                entry[1] += times
                if len(entry[2]) < EXAMPLES:
                    entry[2].append(_example(row, verdict, rule))
    order = {name: place for place, name in enumerate(steps)}
    ranked = sorted(found.items(), key=lambda item: (order[item[0][0]], -item[1][0], item[0][1]))
    return Cleaning(
        rows=len(rows),
        rules=[
            RuleFound(step=step, rule=rule, rows=hit, times=times, drops=drops, examples=examples)
            for (step, rule, drops), (hit, times, examples) in ranked
        ],
    )


def _example(row: TextRow, verdict: Verdict, rule: str) -> RowShown:
    """The place of the first change by ``rule``, before and after it; of a dropped row its beginning."""
    edit = next((each for each in verdict.edits or () if each.rule == rule), None)
    if verdict.text is None:
        return shown(row, verdict.detail, cut(row.text, 4 * AROUND))
    if edit is not None:
        start, end = max(0, edit.start - AROUND), edit.end + AROUND
        before = ("…" if start else "") + row.text[start : edit.start]
        after = row.text[edit.end : end] + ("…" if end < len(row.text) else "")
        return shown(row, "", f"{before}{edit.new}{after}")
    start = _first_difference(row.text, verdict.text)
    old, new = (text[max(0, start - AROUND // 2) : start + 2 * AROUND] for text in (row.text, verdict.text))
    return shown(row, verdict.detail, f"{old} → {new}")


def _first_difference(old: str, new: str) -> int:
    """Where two texts part, by halving."""
    low, high = 0, min(len(old), len(new))
    while low < high:
        middle = (low + high + 1) // 2
        if old[:middle] == new[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def languages_of(rows: Sequence[TextRow], detect: Detect) -> Languages:
    """Languages by ``detect`` (text -> code and probability), commonest first, with the clearest examples of each."""
    told = [detect(row.text[:LANGUAGE_CHARACTERS]) for row in rows]
    counts = Counter(code for code, sure in told if sure >= SURE)
    unsure = sum(sure < SURE for _, sure in told)
    languages = []
    for code, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        own = [index for index, (name, sure) in enumerate(told) if name == code and sure >= SURE]
        best = sorted(own, key=lambda index: (-round(told[index][1], 3), -min(200, len(rows[index].text)), index))
        examples = [shown(rows[index], f"{told[index][1]:.0%}") for index in best[:RARE_EXAMPLES]]
        languages.append(LanguageShare(code=code, rows=count, share=round(count / len(rows), 4), examples=examples))
    return Languages(rows=len(rows), unsure=round(unsure / max(1, len(rows)), 4), languages=languages)
