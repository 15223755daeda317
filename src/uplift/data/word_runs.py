"""Words and runs of words as 64-bit hashes: what near-duplicates, leaks into test parts and evaluation texts are found by.

A word is a run of letters and digits, without regard to case, accents and invisible characters. A character of a script that
is written without spaces (Han, Kana, Thai, ...) and an emoji are each a word. All else separates words. Numbers stay as they
are: arithmetic exercises differ in nothing else.

The hashes depend on nothing but the words: not on other texts, the process or the machine.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Counts = NDArray[np.int64]

BLOCK = 2**17
"""Characters hashed at a time: the arrays of a block stay in the cache. A longer text is cut at white space where it can be."""
TEXTS_BLOCK = 2**21
"""Characters of the texts that are looked at together; bounds memory unless one text is longer."""
LAST = 0x323B0
"""Code points from here on (variation selectors, private use, nothing) are no part of a word."""
UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Kana
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9D),  # half-width Kana
    (0x20000, LAST),
)
SEPARATOR, LETTER, ALONE, INVISIBLE = range(4)
LETTER_STEP = 0x9E3779B97F4A7C15
WORD_STEP = 0xD1342543DE82EF95
"""Odd numbers, so that powers of them have inverses modulo 2^64."""


@dataclass(frozen=True)
class Words:
    """The words of texts, one text after another, and how many each has."""

    hashes: Hashes
    counts: Counts

    @property
    def starts(self) -> Counts:
        """Where each text begins."""
        return np.cumsum(self.counts) - self.counts


def mix(values: Hashes) -> Hashes:
    """A bijection on 64 bits whose every output bit depends on every input bit (splitmix64's)."""
    values = values + np.uint64(LETTER_STEP)
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def blocks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """The texts in slices of bounded size."""
    start, size = 0, 0
    for index, text in enumerate(texts):
        if size and size + len(text) > TEXTS_BLOCK:
            yield texts[start:index]
            start, size = index, 0
        size += len(text) + 1
    if start < len(texts):
        yield texts[start:]


def hash_words(texts: Sequence[str]) -> Words:
    """The words of the texts as hashes."""
    counts = np.zeros(len(texts), dtype=np.int64)
    found: list[Hashes] = []
    for pieces, owners in _pieces(texts):
        hashes, each = _words_of(pieces)
        np.add.at(counts, owners, each)
        found.append(hashes)
    return Words(np.concatenate(found) if found else np.zeros(0, dtype=np.uint64), counts)


def hash_runs(words: Words, length: int) -> tuple[Hashes, Counts]:
    """The hash of every run of ``length`` words within a text, and the text each is of.

    A shorter text gives one hash, of all its words; one without words gives none.
    """
    sums, inverse = _prefix_sums(words.hashes)
    runs = np.where(words.counts > 0, np.maximum(words.counts - length + 1, 1), 0)
    owners = np.repeat(np.arange(len(runs)), runs)
    first = np.arange(len(owners)) - np.repeat(np.cumsum(runs) - runs - words.starts, runs)
    last = np.minimum(first + length, (words.starts + words.counts)[owners])
    return mix((sums[last] - sums[first]) * inverse[first]), owners


def hash_wholes(words: Words) -> Hashes:
    """The hash of all words of each text in their order; the same as that of a run which is the whole text."""
    sums, inverse = _prefix_sums(words.hashes)
    return mix((sums[words.starts + words.counts] - sums[words.starts]) * inverse[words.starts])


class KnownHashes:
    """A sorted set of hashes that answers quickly for many others, most of which are not in it."""

    def __init__(self, hashes: Hashes) -> None:
        self.hashes: Hashes = np.unique(hashes)
        bits = min(max(len(self.hashes) * 8, 2**10).bit_length(), 26)
        self._shift = np.uint64(64 - bits)
        self._possible = np.zeros(2**bits, dtype=bool)
        self._possible[self.hashes >> self._shift] = True

    def find(self, hashes: Hashes) -> tuple[Counts, Counts]:
        """The places in ``hashes`` that hold a known one, and which of ``self.hashes`` each is."""
        candidates = np.flatnonzero(self._possible[hashes >> self._shift])
        if not len(candidates):
            return candidates, candidates
        looked_up = hashes[candidates]
        places = np.searchsorted(self.hashes, looked_up).clip(max=len(self.hashes) - 1)
        right = self.hashes[places] == looked_up
        return candidates[right], places[right]


def _prefix_sums(hashes: Hashes) -> tuple[Hashes, Hashes]:
    """Sums of word times power up to each place, and the inverse powers: any run's hash is two look-ups away."""
    power, inverse = _powers(WORD_STEP, _rounded(len(hashes) + 1))
    sums = np.zeros(len(hashes) + 1, dtype=np.uint64)
    np.cumsum(hashes * power[: len(hashes)], out=sums[1:])
    return sums, inverse


# -- characters --------------------------------------------------------------------------------------------------------
def _pieces(texts: Sequence[str]) -> Iterator[tuple[list[str], list[int]]]:
    """The texts in pieces of at most BLOCK characters, gathered to about as many, and the text that each piece is of."""
    pieces: list[str] = []
    owners: list[int] = []
    size = 0
    for index, text in enumerate(texts):
        for piece in [text] if len(text) < BLOCK else _cut(text):
            if size + len(piece) > BLOCK and pieces:
                yield pieces, owners
                pieces, owners, size = [], [], 0
            pieces.append(piece)
            owners.append(index)
            size += len(piece) + 1
    if pieces:
        yield pieces, owners


def _cut(text: str) -> Iterator[str]:
    """A long text in pieces that end at white space; a word that is longer than a block is cut."""
    start = 0
    while start < len(text):
        end = start + BLOCK
        if end < len(text):
            space = max(text.rfind(" ", start, end), text.rfind("\n", start, end))
            end = space if space > start else end
        yield text[start:end]
        start = end


def _words_of(pieces: Sequence[str]) -> tuple[Hashes, Counts]:
    """The words of the pieces as hashes, and how many each piece has."""
    joined = "\n" + "\n".join(pieces) + "\n"
    lengths = np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces)) + 1
    ends = np.cumsum(lengths)  # where the line feed after each piece lies
    values, kinds = _character_values(), None
    if joined.isascii():
        codes = np.frombuffer(joined.encode(), dtype=np.uint8)
    else:
        wide = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        codes = np.minimum(wide, LAST)
        kinds = _character_kinds()[codes]
        if (kinds == INVISIBLE).any():
            kept = np.flatnonzero(kinds != INVISIBLE)
            codes, kinds, ends = codes[kept], kinds[kept], np.searchsorted(kept, ends)
    letters = values[codes]
    inside = letters != 0
    begins = inside[1:] & ~inside[:-1]
    if kinds is not None:
        alone = kinds == ALONE
        begins |= inside[1:] & (alone[1:] | alone[:-1])
    starts = np.flatnonzero(begins) + 1
    each = np.diff(np.searchsorted(starts, ends), prepend=0)
    if not len(starts):
        return np.zeros(0, dtype=np.uint64), each
    power, inverse = _powers(LETTER_STEP, _rounded(len(letters)))
    letters *= power[: len(letters)]
    return mix(np.add.reduceat(letters, starts) * inverse[starts]), each


def _rounded(size: int) -> int:
    """The next power of two, so that few tables are kept."""
    return max(2 * BLOCK, 1 << (size - 1).bit_length())


@cache
def _powers_of(step: int, size: int) -> tuple[Hashes, Hashes]:
    powers = []
    for base in (step, pow(step, -1, 2**64)):
        table = np.full(size, base, dtype=np.uint64)
        table[0] = 1
        powers.append(np.cumprod(table))
    return powers[0], powers[1]


def _powers(step: int, size: int) -> tuple[Hashes, Hashes]:
    """Powers of ``step`` and of its inverse modulo 2^64; only tables of usual size are kept."""
    return _powers_of(step, size) if size <= 2 * BLOCK else _powers_of.__wrapped__(step, size)


@cache
def _character_kinds() -> NDArray[np.uint8]:
    """What each code point is to a word."""
    by_category = {"L": LETTER, "N": LETTER, "Mc": LETTER, "Mn": INVISIBLE, "Me": INVISIBLE, "Cf": INVISIBLE, "So": ALONE}
    kinds = np.zeros(LAST + 1, dtype=np.uint8)
    for code in range(LAST):
        category = unicodedata.category(chr(code))
        kinds[code] = by_category.get(category) or by_category.get(category[0], SEPARATOR)
    for low, high in UNSPACED:
        part = kinds[low : high + 1]
        part[part == LETTER] = ALONE
    kinds[LAST] = SEPARATOR
    return kinds


@cache
def _character_values() -> Hashes:
    """A random-looking number for each code point that is part of a word, the same for both cases and with any accent."""
    kinds = _character_kinds()
    folded = np.zeros(LAST + 1, dtype=np.uint64)
    for code in np.flatnonzero((kinds == LETTER) | (kinds == ALONE)).tolist():
        folded[code] = code if kinds[code] == ALONE else ord(_folded(chr(code)))
    return np.where(folded > 0, mix(folded), np.uint64(0))


def _folded(letter: str) -> str:
    """Lower case without accents, one character."""
    plain = letter.casefold() if len(letter.casefold()) == 1 else letter.lower()[0]
    return unicodedata.normalize("NFD", plain)[0]
