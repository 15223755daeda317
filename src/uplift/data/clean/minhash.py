"""MinHash signatures of texts, and the texts whose signatures meet in a band (locality-sensitive hashing).

Broder 1997 ("On the resemblance and containment of documents"); the settings are those of FineWeb (Penedo et al. 2024). The
signature of a text holds, for each of bands x rows hash functions, the least hash over its shingles (runs of words). Two texts
agree in one place with the probability of their Jaccard similarity s (shared shingles / all shingles of either), and in all
places of at least one band with probability 1 - (1 - s^rows)^bands.

Of each least hash only as many bits are kept as a band needs to be told from others (b-bit minwise hashing, Li and Koenig
2010): 8 with 8 rows, so 112 bytes a text. Unequal hashes agree in 8 bits once in 256 times; `similarity` takes that out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from uplift.data.word_runs import Counts, Hashes, blocks, hash_runs, hash_words, mix

Signatures = NDArray[Any]
"""(texts, hashes), unsigned integers of ``MinHash.width``."""

BLOCK = 2**14
"""Shingles hashed at a time: they stay in the cache for all hash functions."""
CROWD = 16
"""Texts of one key up to which every pair is listed."""
KEY_BITS = 64
"""Bits that a band must have, so that texts do not meet by chance."""


@dataclass(frozen=True)
class MinHash:
    """Signatures of ``bands`` x ``rows`` hashes over runs of ``gram`` words."""

    gram: int = 5
    bands: int = 14
    rows: int = 8
    seed: int = 0

    @property
    def width(self) -> type[np.unsignedinteger[Any]]:
        """The integer type that is kept of each hash."""
        return np.uint8 if 8 * self.rows >= KEY_BITS else np.uint16 if 16 * self.rows >= KEY_BITS else np.uint32

    @property
    def threshold(self) -> float:
        """The similarity around which detection is about even: (1 / bands) ^ (1 / rows)."""
        return float((1 / self.bands) ** (1 / self.rows))

    @cached_property
    def _multipliers(self) -> NDArray[np.uint32]:
        count = np.arange(self.bands * self.rows, dtype=np.uint64)
        return (mix(mix(np.array([self.seed], dtype=np.uint64)) + count) >> np.uint64(32)).astype(np.uint32) | np.uint32(1)

    def signatures(self, texts: Sequence[str]) -> tuple[Signatures, NDArray[np.bool_]]:
        """The signature of each text, and whether it means anything: a text without words has nothing to compare.

        A text with fewer words than ``gram`` has one shingle, all its words.
        """
        found, full = [], []
        for block in blocks(texts):
            words = hash_words(block)
            least = self._least(*hash_runs(words, self.gram), len(block))
            # The least hashes begin with zeros and nothing more is known of their low bits: all bits are mixed before the cut.
            least = (least * np.uint32(0x9E3779B1)) >> np.uint32(32 - 8 * np.dtype(self.width).itemsize)
            found.append(least.astype(self.width))
            full.append(words.counts > 0)
        if not found:
            return np.zeros((0, self.bands * self.rows), dtype=self.width), np.zeros(0, dtype=bool)
        return np.concatenate(found), np.concatenate(full)

    def _least(self, shingles: Hashes, owners: Counts, texts: int) -> NDArray[np.uint32]:
        """(texts, hashes): each hash function's least value over the shingles of a text.

        The functions are multiplications by odd numbers modulo 2^32, bijections of numbers that are random already.
        """
        least = np.full((self.bands * self.rows, texts), np.iinfo(np.uint32).max, dtype=np.uint32)
        numbers = (shingles >> np.uint64(32)).astype(np.uint32)
        for begin in range(0, len(numbers), BLOCK):
            part, of = numbers[begin : begin + BLOCK], owners[begin : begin + BLOCK]
            starts = np.flatnonzero(np.diff(of, prepend=-1))
            hashed = np.empty_like(part)
            here = np.empty((len(self._multipliers), len(starts)), dtype=np.uint32)
            for row, multiplier in zip(here, self._multipliers, strict=True):
                np.multiply(part, multiplier, out=hashed)
                np.minimum.reduceat(hashed, starts, out=row)
            least[:, of[starts]] = np.minimum(least[:, of[starts]], here)
        return np.ascontiguousarray(least.T)

    def similarity(self, first: Signatures, second: Signatures) -> NDArray[np.float64]:
        """Unbiased estimate of the Jaccard similarity of texts, pair by pair along the leading axes."""
        chance = 2.0 ** -(8 * np.dtype(self.width).itemsize)
        agree = np.count_nonzero(first == second, axis=-1) / (self.bands * self.rows)
        return np.asarray((agree - chance) / (1 - chance))

    def band_keys(self, signatures: Signatures, texts: Counts, band: int) -> Hashes:
        """One number for each of ``texts``: equal where they agree in all rows of the band."""
        keys = np.zeros(len(texts), dtype=np.uint64)
        columns = slice(band * self.rows, (band + 1) * self.rows)
        for begin in range(0, len(texts), BLOCK):
            part = slice(begin, begin + BLOCK)
            for column in signatures[:, columns][texts[part]].T:
                keys[part] = mix(keys[part] ^ column.astype(np.uint64))
        return keys

    def clusters(self, signatures: Signatures, texts: Counts | None = None) -> Counts:
        """A number for each of ``texts`` (all without), the same for those that near-duplicate pairs connect.

        Near duplicates are texts that meet in a band and whose estimated similarity is at least ``threshold``: the second
        condition keeps out the many unlike pairs, few of which meet in a band by chance. Which texts end up together does not
        depend on their order. The signatures are not copied: there may be many.
        """
        texts = np.arange(len(signatures)) if texts is None else texts
        if not len(texts):
            return np.zeros(0, dtype=np.int64)
        unlike, back = self._unlike(signatures, texts)
        labels = np.arange(len(signatures), dtype=np.int64)
        for band in range(self.bands):
            labels = self._joined(signatures, unlike, self.band_keys(signatures, unlike, band), labels)
        return np.asarray(labels[unlike][back])

    def _unlike(self, signatures: Signatures, texts: Counts) -> tuple[Counts, Counts]:
        """One of ``texts`` for each signature among them, and where in these each text has its own."""
        whole = np.zeros(len(texts), dtype=np.uint64)
        for band in range(self.bands):
            whole = mix(whole ^ self.band_keys(signatures, texts, band))
        _, chosen, back = np.unique(whole, return_index=True, return_inverse=True)
        return texts[chosen], back

    def _joined(self, signatures: Signatures, texts: Counts, keys: Hashes, labels: Counts) -> Counts:
        """``labels`` (of all signatures) after joining the near duplicates among those of ``texts`` that have one key."""
        order = np.argsort(keys, kind="stable")
        texts, keys = texts[order], keys[order]
        size = np.diff(np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1], [True]])))
        meeting = np.repeat((size > 1) & (size <= CROWD), size)
        pairs = []
        few, few_keys = texts[meeting], keys[meeting]
        for apart in range(1, CROWD):
            one = np.flatnonzero(few_keys[apart:] == few_keys[:-apart])
            if not len(one):
                break
            pairs.append(self._alike(signatures, labels, few[one], few[one + apart]))
        begins = np.cumsum(size) - size
        for begin, count in zip(begins[size > CROWD].tolist(), size[size > CROWD].tolist(), strict=True):
            pairs.append(self._alike_in_crowd(signatures, texts[begin : begin + count]))
        if not pairs:
            return labels
        first, second = (
            labels[np.concatenate([first for first, _ in pairs])],
            labels[np.concatenate([other for _, other in pairs])],
        )
        graph = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(len(labels), len(labels)))
        return np.asarray(connected_components(graph, directed=False)[1][labels], dtype=np.int64)

    def _alike(self, signatures: Signatures, labels: Counts, first: Counts, second: Counts) -> tuple[Counts, Counts]:
        """The pairs whose estimated similarity reaches the threshold; those that are together already are left out."""
        apart = labels[first] != labels[second]
        first, second = first[apart], second[apart]
        near = np.zeros(len(first), dtype=bool)
        for begin in range(0, len(first), BLOCK):  # bounds memory
            part = slice(begin, begin + BLOCK)
            near[part] = self.similarity(signatures[first[part]], signatures[second[part]]) >= self.threshold
        return first[near], second[near]

    def _alike_in_crowd(self, signatures: Signatures, members: Counts) -> tuple[Counts, Counts]:
        """Enough near-duplicate pairs to connect what all of them connect, when too many texts meet to list every pair.

        Each text is compared with those that no earlier one reached: about once with each of a tight crowd, with each other
        one when they are all unlike.
        """
        first, second = [], []
        rest, reached = members, members[:0]
        while len(rest):
            if not len(reached):
                reached, rest = rest[:1], rest[1:]
            text, reached = reached[0], reached[1:]
            near = self.similarity(signatures[rest], signatures[text]) >= self.threshold
            first.append(np.full(np.count_nonzero(near), text))
            second.append(rest[near])
            reached, rest = np.concatenate([reached, rest[near]]), rest[~near]
        return np.concatenate(first), np.concatenate(second)
