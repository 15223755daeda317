"""Rows that hold a text of an evaluation set are dropped: a model that has seen its test scores better than it is.

A row goes under the first rule that holds for it (words are those of ``word_runs``: no case, spacing, punctuation, accents):

``evaluation_text``
    It is an evaluation text, or holds a whole one of at least ``WHOLE`` words.
``evaluation_run``
    It has a run of ``gram`` words in common with one (13 as in Brown et al. 2020).
``evaluation_similar``
    Of the evaluation text's runs of ``SIMILAR_GRAM`` words it holds at least ``SIMILAR`` of all and ``LEAST_RUNS`` in number,
    all within twice the length of that text. This finds reworded copies: when each word is replaced with probability 0.1, 13
    words in a row survive once in four times, three in a row three times in four. Runs that more than ``COMMON`` evaluation
    texts share are not counted, and texts of less than ``WHOLE`` words are not looked for in this way.

On sentences of 21 words with 10 % of the words replaced the third rule finds 95 %, runs of 13 words alone 38 %; of reviews that
have nothing to do with 6,000 such sentences it takes 0.4 %. Longer evaluation texts are easier on both sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from uplift.core.errors import DataError, Place
from uplift.core.prepare_section import Decontaminate
from uplift.core.values import Origin
from uplift.data.clean.step import CleaningStep, Verdict, dropped, joined
from uplift.data.rows import BadRow
from uplift.data.sources import missing_column, stream_source
from uplift.data.word_runs import Counts, Hashes, KnownHashes, Words, blocks, hash_runs, hash_wholes, hash_words

WHOLE = 8
"""Words that an evaluation text must have to be looked for inside a longer row; shorter ones must be the whole row."""
SIMILAR_GRAM = 3
SIMILAR = 0.4
LEAST_RUNS = 4
COMMON = 10
"""Evaluation texts that may share a run; of more, a run says nothing of which text it comes from."""
CLEAN, TEXT, RUN, SIMILAR_TEXT = range(4)
RULES = {TEXT: "evaluation_text", RUN: "evaluation_run", SIMILAR_TEXT: "evaluation_similar"}


class Sketch(NamedTuple):
    """Of each row: the rule that it falls under, the evaluation text, and which share of its runs the row holds."""

    rules: NDArray[np.int8]
    texts: Counts
    shares: NDArray[np.float64]


NOTHING = Sketch(np.zeros(0, dtype=np.int8), np.zeros(0, dtype=np.int64), np.zeros(0))


class Decontaminator(CleaningStep):
    """Drops rows that hold evaluation texts; the detail names the file and line of the text."""

    sketches: ClassVar = Sketch
    looks_at_all: ClassVar[bool] = True  # only so that texts are looked at by the chunk, some thirty times faster than alone

    def __init__(self, section: Decontaminate, base_dir: Path) -> None:
        texts, self._origins = _evaluation_texts(section, base_dir)
        words = hash_words(texts)
        whole, gram = min(WHOLE, section.gram), section.gram
        spoken = np.flatnonzero(words.counts > 0)
        self._wholes = _RunIndex(hash_wholes(words)[spoken], spoken, len(texts))
        lengths = {length: words.counts == length for length in range(whole, gram)} | {gram: words.counts >= gram}
        self._runs = {length: _index(words, length, some) for length, some in lengths.items() if some.any()}
        self._gram = gram
        self._similar = _index(words, SIMILAR_GRAM, words.counts >= whole, distinctive=True)
        self._lengths = words.counts
        self._found = NOTHING

    def sketch(self, texts: Sequence[str]) -> Sketch:
        """Look all texts up."""
        return joined(NOTHING, (self._look_up(hash_words(block)) for block in blocks(texts)))

    def settle(self, sketches: Iterable[Sketch]) -> None:
        """Nothing to decide: every row is judged by itself."""
        self._found = joined(NOTHING, sketches)

    def decision(self) -> Mapping[str, NDArray[Any]]:
        """What was found in each row."""
        return self._found._asdict()

    def decide(self, decision: Mapping[str, NDArray[Any]]) -> None:
        """A decision made elsewhere."""
        self._found = Sketch(**decision)

    def judge(self, row: int, text: str) -> Verdict:
        """Whether the row is clean."""
        rule = int(self._found.rules[row])
        if rule == CLEAN:
            return Verdict(text)
        origin, share = self._origins[int(self._found.texts[row])], self._found.shares[row]
        held = "the whole" if rule == TEXT else f"{share:.1%} of the {self._gram if rule == RUN else SIMILAR_GRAM}-word runs"
        return dropped(RULES[rule], f"holds {held} of {origin}")

    def _look_up(self, words: Words) -> Sketch:
        count = len(words.counts)
        found = Sketch(np.zeros(count, dtype=np.int8), np.zeros(count, dtype=np.int64), np.zeros(count))
        matches = [(TEXT, self._wholes.matches(hash_wholes(words), np.arange(count)))]
        for length, index in self._runs.items():
            match = index.matches(*hash_runs(words, length))
            matches += [(TEXT, match.of(match.shares >= 1)), (RUN, match)]
        matches.append((SIMILAR_TEXT, self._near(words)))
        for rule in (TEXT, RUN, SIMILAR_TEXT):
            for each, match in matches:
                if each == rule:
                    _note(found, rule, match)
        return found

    def _near(self, words: Words) -> _Matches:
        """The texts that hold enough of an evaluation text's short runs, close together."""
        hashes, owners = hash_runs(words, SIMILAR_GRAM)
        match = self._similar.matches(hashes, owners)
        match = match.of((match.shares >= SIMILAR) & (match.counts >= LEAST_RUNS))
        close = np.zeros(len(match.rows), dtype=bool)
        for at, (row, text) in enumerate(zip(match.rows.tolist(), match.texts.tolist(), strict=True)):
            begin, end = np.searchsorted(owners, [row, row + 1])
            places = self._similar.places(hashes[begin:end], text)
            least = max(LEAST_RUNS, SIMILAR * self._similar.sizes[text])
            within = np.searchsorted(places, places + 2 * self._lengths[text]) - np.arange(len(places))
            close[at] = within.max() >= least
        return match.of(close)


class _Matches(NamedTuple):
    """Rows that share runs with evaluation texts: how many different ones, and which share of the text's."""

    rows: Counts
    texts: Counts
    counts: Counts
    shares: NDArray[np.float64]

    def of(self, some: NDArray[np.bool_]) -> _Matches:
        """Some of them."""
        return _Matches(self.rows[some], self.texts[some], self.counts[some], self.shares[some])


class _RunIndex:
    """Which evaluation texts have which runs. ``sizes``: how many different runs each text has.

    Of a run of more than ``COMMON`` texts the first so many are known; with ``distinctive`` it is left out altogether.
    """

    def __init__(self, hashes: Hashes, owners: Counts, texts: int, distinctive: bool = False) -> None:
        order = np.lexsort((owners, hashes))
        hashes, owners = hashes[order], owners[order]
        new = np.concatenate([[True], (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1])])[: len(hashes)]
        hashes, owners = hashes[new], owners[new]
        begins = np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]])[: len(hashes)])
        many = np.diff(begins, append=len(hashes))
        rank = np.arange(len(hashes)) - np.repeat(begins, many)
        kept = (np.repeat(many, many) <= COMMON) if distinctive else rank < COMMON
        sized = kept if distinctive else np.ones(len(hashes), dtype=bool)
        self.sizes = np.bincount(owners[sized], minlength=texts)
        self.known = KnownHashes(hashes[kept])
        self._owners = owners[kept]
        self._begins = np.searchsorted(hashes[kept], self.known.hashes)
        self._many = np.diff(self._begins, append=len(self._owners))

    def matches(self, hashes: Hashes, rows: Counts) -> _Matches:
        """All pairs of a row and an evaluation text with a run in common; ``rows`` is the row of each hash, ascending."""
        places, which = self.known.find(hashes)
        pairs = np.unique(rows[places] * max(1, len(self.known.hashes)) + which)
        row, which = np.divmod(pairs, max(1, len(self.known.hashes)))
        some, owners = self._texts_with(which)
        pairs, counts = np.unique(row[some] * max(1, len(self.sizes)) + owners, return_counts=True)
        row, text = np.divmod(pairs, max(1, len(self.sizes)))
        return _Matches(row, text, counts, counts / np.maximum(self.sizes[text], 1))

    def places(self, hashes: Hashes, text: int) -> Counts:
        """Where in ``hashes`` the runs of one evaluation text are."""
        places, which = self.known.find(hashes)
        some, owners = self._texts_with(which)
        return np.asarray(places[some[owners == text]])

    def _texts_with(self, which: Counts) -> tuple[Counts, Counts]:
        """The texts that have each of these runs: the place of the run in ``which``, and the text."""
        many = self._many[which]
        within = np.arange(int(many.sum())) - np.repeat(np.cumsum(many) - many, many)
        return np.repeat(np.arange(len(which)), many), self._owners[np.repeat(self._begins[which], many) + within]


def _index(words: Words, length: int, some: NDArray[np.bool_], distinctive: bool = False) -> _RunIndex:
    """The runs of ``length`` words of some of the texts."""
    hashes, owners = hash_runs(words, length)
    return _RunIndex(hashes[some[owners]], owners[some[owners]], len(words.counts), distinctive)


def _note(found: Sketch, rule: int, match: _Matches) -> None:
    """Writes down, for rows that are still clean, the evaluation text of which each holds most."""
    order = np.lexsort((match.texts, -match.shares, match.rows))
    rows = match.rows[order]
    first = order[(np.diff(rows, prepend=-1) != 0) & (found.rules[rows] == CLEAN)]
    rows = match.rows[first]
    found.rules[rows], found.texts[rows], found.shares[rows] = rule, match.texts[first], match.shares[first]


# -- evaluation sets ---------------------------------------------------------------------------------------------------
def _evaluation_texts(section: Decontaminate, base_dir: Path) -> tuple[list[str], list[Origin]]:
    """The texts to look for and where each stands. Raises DataError: a row that cannot be read, a column that is missing."""
    texts: list[str] = []
    origins: list[Origin] = []
    for source in section.against:
        names: dict[str, None] = {}
        place = Place()
        for row in stream_source(source, base_dir):
            if isinstance(row, BadRow):
                why = "what cannot be read cannot be looked for"
                raise DataError(f"an evaluation set has a bad row: {row.rule}: {row.detail}", where=row.place, why=why)
            names.update(dict.fromkeys(row.values))
            place = Place(row.origin.file)
            for value in [row.values.get(name) for name in section.columns] if section.columns else row.values.values():
                for text in _texts_in(value):
                    texts.append(text)
                    origins.append(row.origin)
        for column in section.columns:
            if column not in names:
                raise missing_column(column, list(names), place, "columns")
    return texts, origins


def _texts_in(value: Any) -> Iterator[str]:
    """All text in a value: of lists and of the values of objects too (turns, choices)."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts_in(item)
