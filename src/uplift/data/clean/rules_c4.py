"""The rules of C4 (Raffel et al. 2020, "Exploring the limits of transfer learning", section 2.2, and the code that made it).

Most of them look at lines, and take out those that break a rule. Blank lines count as no lines here: they part paragraphs, and
stay between lines that stay. No list of bad words comes with the rules; a recipe may hold one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from uplift.data.clean.measures import TOKEN, Measures
from uplift.data.clean.rule import Rule, by_name
from uplift.data.clean.step import Edit

CITATION = re.compile(r"[ \t]?\[(?:\d{1,4}|edit|citation needed)\]")
END_MARKS = (".", "?", "!", '"', "'", "”", "’", "»", "。", "？", "！")
ELLIPSES = ("...", "…")
JAVASCRIPT = ("javascript",)
POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


def bad_words(phrases: Sequence[str]) -> Callable[[Measures], float]:
    """How many of the words and phrases a text holds, whatever their case."""
    single = {phrase.lower() for phrase in phrases if len(TOKEN.findall(phrase)) == 1}
    several = [f" {' '.join(TOKEN.findall(phrase.lower()))} " for phrase in phrases if phrase.lower() not in single]

    def count(text: Measures) -> float:
        found = len(single.intersection(token.lower() for token in text.vocabulary))
        if several:
            joined = f" {' '.join(text.tokens).lower()} "
            found += sum(phrase in joined for phrase in several)
        return found

    return count


C4 = by_name(
    Rule("c4_long_word", "c4", "lines with a word of more characters", 1000, "characters"),
    Rule("c4_citations", "c4", "marks such as [1], [edit] and [citation needed], out of lines that stay"),
    Rule("c4_end_mark", "c4", "lines that do not end as a sentence or a quotation does"),
    Rule("c4_line_words", "c4", "lines with fewer words", 5, "words", "least"),
    Rule("c4_javascript", "c4", "lines that speak of javascript"),
    Rule("c4_policy", "c4", "lines that speak of cookies, privacy or terms of use"),
    Rule("c4_lorem_ipsum", "c4", "it holds `lorem ipsum`", measure=lambda text: text.text.lower().count("lorem ipsum")),
    Rule(
        "c4_curly_bracket", "c4", "it holds an opening curly bracket, as code does", measure=lambda text: text.text.count("{")
    ),
    Rule("c4_sentences", "c4", "it has fewer sentences", 3, "sentences", "least", lambda text: text.sentences),
    Rule("c4_bad_words", "c4", "it holds a word or phrase of the recipe's `bad_words`", measure=bad_words([])),
)


class LineRules:
    """The rules of C4 on lines; those that are in ``limits`` are applied."""

    def __init__(self, limits: Mapping[str, float]) -> None:
        self._active = {name for name in limits if name in C4 and C4[name].measure is None}
        self._longest = limits.get("c4_long_word", float("inf"))
        self._words = limits.get("c4_line_words", 0)

    def edits(self, text: str) -> list[Edit]:
        """What to take out, in order."""
        if not self._active:
            return []
        lower = text.lower()  # asked once for the text; most texts hold none of the phrases
        phrases = {
            rule: [phrase for phrase in known if phrase in lower]
            for rule, known in (("c4_javascript", JAVASCRIPT), ("c4_policy", POLICIES))
            if rule in self._active
        }
        cut = _Cut()
        start = 0
        for line in text.split("\n"):
            end = min(start + len(line) + 1, len(text))
            bare = line.strip()
            cited = "[" in bare and "c4_citations" in self._active and CITATION.search(bare) is not None
            rule = self._broken(CITATION.sub("", bare).strip() if cited else bare, phrases) if bare else ""
            if rule:
                cut.drop(start, end, rule)
            elif bare:
                cut.keep(start, line, cited)
            else:
                cut.blank(start, end)
            start = end
        return cut.finished(len(text))

    def _broken(self, line: str, phrases: Mapping[str, Sequence[str]]) -> str:
        """The rule that a line breaks, if any. One whose citations leave new ones behind, or nothing, goes as a whole."""
        active = self._active
        if len(line) > self._longest and any(len(word) > self._longest for word in line.split()):
            return "c4_long_word"
        if not line or "[" in line and "c4_citations" in active and CITATION.search(line):
            return "c4_citations"
        if "c4_end_mark" in active and (not line.endswith(END_MARKS) or line.endswith(ELLIPSES)):
            return "c4_end_mark"
        if self._words and len(line.split()) < self._words:
            return "c4_line_words"
        for rule, found in phrases.items():
            if found and any(phrase in line.lower() for phrase in found):
                return rule
        return ""


class _Cut:
    """Collects edits. Of the blank lines around lines that go, those that would follow another, or stand at an end, go too."""

    def __init__(self) -> None:
        self._edits: list[Edit] = []
        self._after_blank = True
        self._pending = False
        """Whether a line went since the last one that stayed."""
        self._content_end = 0
        self._tail = 0
        """Number of edits up to the last line with content that stays."""

    def drop(self, start: int, end: int, rule: str) -> None:
        self._edits.append(Edit(start, end, "", rule))
        self._pending = True

    def blank(self, start: int, end: int) -> None:
        if self._pending and self._after_blank:
            last = self._edits[-1]
            self._edits[-1] = Edit(last.start, end, "", last.rule)
        else:
            self._after_blank, self._pending = True, False

    def keep(self, start: int, line: str, cited: bool) -> None:
        if cited:
            self._edits += [
                Edit(start + found.start(), start + found.end(), "", "c4_citations") for found in CITATION.finditer(line)
            ]
        self._after_blank, self._pending = False, False
        self._content_end, self._tail = start + len(line), len(self._edits)

    def finished(self, length: int) -> list[Edit]:
        """All edits. Lines that went at the end take the line breaks before them along."""
        if len(self._edits) > self._tail:
            first = self._edits[self._tail]
            self._edits[self._tail] = Edit(self._content_end, first.end, "", first.rule)
            last = self._edits[-1]
            self._edits[-1] = Edit(last.start, length, "", last.rule)
        return self._edits
