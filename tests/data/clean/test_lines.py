"""Repeated lines and paragraphs: the first stays, code survives, edits say what was done, cleaning twice is cleaning once."""

from __future__ import annotations

import random
import sysconfig
import time
from collections import Counter
from pathlib import Path

import pytest

from uplift.core.prepare_section import Lines
from uplift.data.clean.lines import LineDeduplicator
from uplift.data.clean.step import Verdict
from uplift.data.splitting import normalized

LINE = "Copyright by the people who wrote this long line of text"
PARAGRAPH = "Copyright by the people\nwho wrote this paragraph of text"


def run(texts: list[str], chunk: int = 100, **section: object) -> list[Verdict]:
    step = LineDeduplicator(Lines.model_validate(section))
    step.settle([step.sketch(texts[start : start + chunk]) for start in range(0, len(texts), chunk)])
    return [step.judge(row, text) for row, text in enumerate(texts)]


def result(texts: list[str], chunk: int = 100, **section: object) -> list[str | None]:
    return [verdict.text for verdict in run(texts, chunk, **section)]


def test_the_first_stays_and_later_ones_go_with_their_line_feed() -> None:
    texts = [f"a\n{LINE}\nb", f"c\n  {LINE.upper()}\nd", f"{LINE}\ne", f"f\n{LINE}", f"g\n{LINE}\n", f"{LINE}\nh\n{LINE}"]
    assert result(texts) == [texts[0], "c\nd", "e", "f", "g\n", "h"]
    assert [dict(verdict.counts) for verdict in run(texts)] == [{}, *[{"repeated_line": 1}] * 4, {"repeated_line": 2}]


def test_a_row_of_nothing_else_is_dropped() -> None:
    verdicts = run([LINE, f"{LINE}\n\n{LINE}", f"\n{LINE}\n", "short"])
    assert [verdict.text for verdict in verdicts] == [LINE, None, None, "short"]
    assert [dict(verdict.counts) for verdict in verdicts] == [{}, {"all_repeated": 1}, {"all_repeated": 1}, {}]
    assert verdicts[1].detail == "nothing but 2 line(s) seen before"


def test_so_many_repeats_as_allowed() -> None:
    texts = [f"{number}\n{LINE}\n{LINE}" for number in range(3)]
    assert [text and text.count(LINE) for text in result(texts, repeats=3)] == [2, 1, 0]
    assert result(texts, repeats=6) == texts


def test_paragraphs_go_with_the_blank_lines_after_them() -> None:
    texts = [f"a\n\n{PARAGRAPH}\n\nb", f"c\n\n{PARAGRAPH}\n \n\nd\n", f"{PARAGRAPH}\n\ne", f"f\n\n{PARAGRAPH}\n"]
    assert result(texts, unit="paragraph") == [texts[0], "c\n\nd\n", "e", "f\n"]
    half = PARAGRAPH.splitlines()[0]
    assert result([PARAGRAPH, f"{half}\nother words that follow it"], unit="paragraph", length=10)[1] is not None
    assert result([half, f"{half}\nother words that follow it"], unit="line", length=10)[1] == "other words that follow it"


def test_short_lines_and_code_stay() -> None:
    code = "int main() {\n    for (;;) {\n        return 0;\n    }\n}\n\n\n"
    assert result([code, code, "\n \n\n", "}\n}"]) == [code, code, "\n \n\n", "}\n}"]
    padded = f"{' ' * 60}}}\n"
    assert result([padded, padded]) == [padded, padded]
    assert result([code, code], length=5)[1] == "    }\n}\n\n\n"


def source_files() -> list[str]:
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:150]
    return [file.read_text(encoding="utf-8", errors="ignore") for file in files]


@pytest.mark.parametrize("unit", ["line", "paragraph"])
@pytest.mark.parametrize("repeats", [1, 2])
def test_real_text_against_a_plain_reading(unit: str, repeats: int) -> None:
    texts = source_files()
    verdicts = run(texts, unit=unit, repeats=repeats)
    seen: Counter[str] = Counter()
    for text, verdict in zip(texts, verdicts, strict=True):
        units = text.split("\n") if unit == "line" else _paragraphs(text)
        stays = []
        for each in units:
            key = normalized(each)
            seen[key] += len(key) >= 40
            if len(key) < 40 or seen[key] <= repeats:
                stays.append(key)
        if verdict.text is None:
            assert not any(stays)
        else:
            left = verdict.text.split("\n") if unit == "line" else _paragraphs(verdict.text)
            assert [key for key in map(normalized, left) if key] == [key for key in stays if key]
    removed = sum(verdict.counts.get(f"repeated_{unit}", 0) for verdict in verdicts)
    assert 0 < removed <= sum(max(0, count - repeats) for count in seen.values())


def _paragraphs(text: str) -> list[str]:
    found: list[list[str]] = [[]]
    for line in text.split("\n"):
        if line.strip():
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return ["\n".join(lines) for lines in found if lines]


@pytest.mark.parametrize("unit", ["line", "paragraph"])
def test_twice_is_once_in_any_chunks_and_the_edits_lead_there(unit: str) -> None:
    texts = source_files()
    verdicts = run(texts, unit=unit)
    assert run(texts, chunk=7, unit=unit) == verdicts
    for text, verdict in zip(texts, verdicts, strict=True):
        for edit in reversed(verdict.edits or ()):
            text = text[: edit.start] + edit.new + text[edit.end :]
        assert verdict.text in (None, text)
    once = [verdict.text for verdict in verdicts if verdict.text is not None]
    assert result(once, chunk=13, unit=unit) == once


def test_random_texts_twice_is_once() -> None:
    rng = random.Random(0)
    pieces = ["a", "", " ", "A long line", "a  LONG line", "}", "another long one", "\t"]
    for unit in ("line", "paragraph"):
        for _ in range(300):
            texts = ["\n".join(rng.choices(pieces, k=rng.randint(0, 8))) for _ in range(6)]
            once = [text for text in result(texts, unit=unit, length=5) if text is not None]
            assert result(once, unit=unit, length=5) == once


@pytest.mark.parametrize(
    "text",
    ["x" * 10**6, "\n" * 10**5, " \n" * 50_000, f"{LINE}\n" * 2000, "\ud800" * 10**5, "\r\n" * 50_000, "é\u2028" * 50_000],
)
@pytest.mark.parametrize("unit", ["line", "paragraph"])
def test_odd_long_texts_take_no_time(unit: str, text: str) -> None:
    begin = time.process_time()
    run([text, text, ""], unit=unit)
    assert time.process_time() - begin < 3  # a few hundredths of a second; the margin is for crowded machines


def test_nothing() -> None:
    assert run([]) == []
    assert result(["", ""]) == ["", ""]
