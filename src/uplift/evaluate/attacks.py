"""Attacks on a text: small changes of its words, and the greedy search for those that mislead a model within a budget.

Pure functions of text and random numbers; the model is asked through a generator: ``search`` yields texts and is sent one
``Answer`` for each. So the rows of a test part advance side by side and their texts are scored in common batches.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from uplift.data.words import WORD


# -- text --------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Words:
    """A text with some of its words replaced (``changes``: index -> replacement, empty to drop the word)."""

    text: str
    changes: tuple[tuple[int, str], ...] = ()

    @cached_property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Characters of each word of the original text."""
        return tuple(match.span() for match in WORD.finditer(self.text))

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: int) -> str:
        """A word of the original text."""
        begin, end = self.spans[index]
        return self.text[begin:end]

    def with_change(self, index: int, replacement: str) -> Words:
        """The same with one more word replaced; a second change of a word replaces the first."""
        return replace(self, changes=tuple(sorted({**dict(self.changes), index: replacement}.items())))

    @cached_property
    def changed(self) -> str:
        """The text with its changes; a dropped word takes the space before it along, the first one the space after it."""
        result, done = "", 0
        for index, replacement in self.changes:
            begin, end = self.spans[index]
            result += self.text[done:begin]
            if not replacement and result.strip():
                result = result.rstrip()
            elif not replacement:
                end += len(self.text[end:]) - len(self.text[end:].lstrip())
            result, done = result + replacement, end
        return result + self.text[done:]

    @property
    def share_changed(self) -> float:
        """Share of words that differ."""
        return len(self.changes) / max(1, len(self))

    @property
    def similarity(self) -> float:
        """The smaller of the shares of words and of characters of words that are unchanged."""
        edits = sum(edit_distance(self[index], replacement) for index, replacement in self.changes)
        letters = sum(end - begin for begin, end in self.spans)
        return min(1.0 - self.share_changed, 1.0 - min(1.0, edits / max(1, letters)))


def edit_distance(first: str, second: str) -> int:
    """Fewest insertions, removals and replacements of characters that turn one word into the other (Levenshtein 1966)."""
    row = list(range(len(second) + 1))
    for i, one in enumerate(first, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(second, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (one != other))
    return row[-1]


# -- search ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Answer:
    """What the model makes of a text: the true label's log-probability minus the best other one's, and whether it is right."""

    lead: float
    right: bool


@dataclass(frozen=True)
class Found:
    """The end of a search: the last text that was kept, whether it misleads the model, and what the search took."""

    words: Words
    broken: bool
    queries: int
    similarity: float

    @property
    def text(self) -> str:
        """The attacked text; the original one when no change was kept."""
        return self.words.changed


@dataclass(frozen=True)
class Limits:
    """What a search may do. ``similar`` gives a similarity for each text, beside that of its words; both must reach
    ``similarity``."""

    queries: int
    similarity: float
    similar: Callable[[Sequence[str]], Sequence[float]] = lambda texts: [1.0] * len(texts)


Options = Callable[[int], Sequence[str]]
"""Word index -> its replacements, best first."""
Search = Generator[list[str], list[Answer], Found]


def search(
    text: str,
    start: Answer,
    options: Options,
    limits: Limits,
    rng: random.Random,
    order: Sequence[int] | None = None,
    spent: int = 0,
) -> Search:
    """Change one word after the other, the most important first, and keep what lowers the true label's lead; stop at success.

    ``start``: the answer to ``text``. ``order``: word indices by importance, found with ``spent`` queries; None: half of the
    queries measure the lead without each word (of long texts: without some, drawn by ``rng``). A query is a text that the model
    answers; one asked before costs nothing.
    """
    asking, current = _Asking(limits, spent), Words(text)
    if order is None:
        order = yield from _importance(current, asking, rng)
    for index in order:
        chosen = asking.allowed([current.with_change(index, option) for option in options(index)])
        answers = yield from asking.ask([words.changed for words in chosen])
        if not answers:
            continue
        best = min(range(len(answers)), key=lambda i: (answers[i].right, answers[i].lead))
        if not answers[best].right:
            return Found(chosen[best], True, asking.spent, asking.similarity(chosen[best]))
        if answers[best].lead < start.lead:
            current, start = chosen[best], answers[best]
    return Found(current, False, asking.spent, asking.similarity(current))


def _importance(words: Words, asking: _Asking, rng: random.Random) -> Generator[list[str], list[Answer], list[int]]:
    """Word indices, those first without which the lead is smallest; the ones that were not measured last."""
    every = rng.sample(range(len(words)), len(words))
    measured = every[: asking.limits.queries // 2] if len(words) > 1 else []
    answers = yield from asking.ask([words.with_change(index, "").changed for index in measured])
    leads = {index: answer.lead for index, answer in zip(measured, answers, strict=False)}
    return sorted(leads, key=lambda index: leads[index]) + [index for index in every if index not in leads]


class _Asking:
    """The account of one search: what was asked, what it was answered, and what may still be asked."""

    def __init__(self, limits: Limits, spent: int) -> None:
        self.limits, self.spent = limits, spent
        self._known: dict[str, Answer] = {}

    def similarity(self, words: Words) -> float:
        """The smaller of the words' similarity and the texts' one."""
        return min(words.similarity, self.limits.similar([words.changed])[0])

    def allowed(self, candidates: list[Words]) -> list[Words]:
        """Those that are similar enough, not empty and not more than the queries that are left."""
        least = self.limits.similarity
        near = [words for words in candidates if words.similarity >= least and WORD.search(words.changed)]
        near = [
            words for words, share in zip(near, self.limits.similar([w.changed for w in near]), strict=True) if share >= least
        ]
        left, taken = self.limits.queries - self.spent, []
        for words in near:
            left -= words.changed not in self._known
            if left >= 0:
                taken.append(words)
        return taken

    def ask(self, texts: list[str]) -> Generator[list[str], list[Answer], list[Answer]]:
        """The answers to ``texts``, as many as the queries that are left allow."""
        new = list(dict.fromkeys(text for text in texts if text not in self._known))
        if new:
            self.spent += len(new)
            self._known.update(zip(new, (yield new), strict=True))
        return [self._known[text] for text in texts]
