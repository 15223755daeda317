"""One of rows that are equal, or nearly so, is kept.

Exact duplicates have the same text but for case and spacing. Near duplicates meet in a band of their MinHash signatures and
have an estimated similarity above the threshold of those bands (``minhash.py``). Rows that are connected by such pairs form a
cluster, whatever their order; of each cluster one row stays. Since what is kept of two clusters is not connected, a second
cleaning drops nothing.

What is remembered of a row while sketches are gathered: 20 bytes, and for near duplicates 113 more with the usual bands. The
decision needs up to as much again for a moment, and leaves 9 bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from uplift.core.prepare_section import Dedup
from uplift.data.clean.minhash import MinHash, Signatures
from uplift.data.clean.step import CleaningStep, Verdict, dropped, joined
from uplift.data.splitting import normalized
from uplift.data.word_runs import Counts


class Sketch(NamedTuple):
    """Of each text: a 128-bit hash of what counts as the same, its length, its signature and whether that means anything."""

    digests: NDArray[np.uint64]
    lengths: NDArray[np.uint32]
    signatures: Signatures
    comparable: NDArray[np.bool_]


class Deduplicator(CleaningStep):
    """Drops rows under the rules ``exact`` and ``near``; the detail names the row that stays."""

    looks_at_all: ClassVar[bool] = True
    sketches: ClassVar = Sketch

    def __init__(self, section: Dedup) -> None:
        self.section = section
        self.minhash = MinHash(section.gram, section.bands, section.rows, section.seed)
        self._kept = np.zeros(0, dtype=np.int64)
        """Of each row, the row that stays in its place."""
        self._equal = np.zeros(0, dtype=bool)
        """Whether a row is an exact duplicate of the one that stays."""

    def sketch(self, texts: Sequence[str]) -> Sketch:
        """Hashes and signatures."""
        whole = b"".join(
            hashlib.blake2b(normalized(text).encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts
        )
        digests = np.frombuffer(whole, dtype="<u8").reshape(-1, 2)
        lengths = np.fromiter(map(len, texts), dtype=np.uint32, count=len(texts))
        signatures, comparable = self.minhash.signatures(texts if self.section.near else [])
        return Sketch(digests, lengths, signatures, comparable)

    def settle(self, sketches: Iterable[Sketch]) -> None:
        """Form the clusters and choose who stays."""
        digests, lengths, signatures, comparable = joined(self.sketch([]), sketches)
        if not len(digests):
            return
        same, first = _groups(digests)
        del digests  # memory: there may be many rows
        labels = self._near(signatures, comparable, first)[same] if self.section.near else same
        del signatures
        order = np.lexsort((-lengths.astype(np.int64), labels) if self.section.keep == "longest" else (labels,))
        leads = np.flatnonzero(np.diff(labels[order], prepend=-1))
        chosen = np.zeros(int(labels.max()) + 1, dtype=np.int64)
        chosen[labels[order[leads]]] = order[leads]
        self._kept = chosen[labels]
        self._equal = same[self._kept] == same

    def _near(self, signatures: Signatures, comparable: NDArray[np.bool_], first: Counts) -> Counts:
        """The near-duplicate cluster of each group of equal rows; ``first`` is one row of each group."""
        labels = np.arange(len(first), dtype=np.int64)
        some = np.flatnonzero(comparable[first])
        if len(some):
            labels[some] = len(first) + self.minhash.clusters(signatures, first[some])
        return np.asarray(labels)

    def decision(self) -> Mapping[str, NDArray[Any]]:
        """Of each row the one that stays, and whether the two are equal."""
        return {"kept": self._kept, "equal": self._equal}

    def decide(self, decision: Mapping[str, NDArray[Any]]) -> None:
        """A decision made elsewhere."""
        self._kept, self._equal = decision["kept"], decision["equal"]

    def judge(self, row: int, text: str) -> Verdict:
        """Whether the row stays."""
        kept = int(self._kept[row])
        if kept == row:
            return Verdict(text)
        return dropped("exact" if self._equal[row] else "near", f"same as row {kept}")


def _groups(digests: NDArray[np.uint64]) -> tuple[Counts, Counts]:
    """A number for each row, the same for equal digests, and the first row of each number."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    ordered = digests[order]
    new = np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)])[: len(order)]
    numbers = np.empty(len(order), dtype=np.int64)
    numbers[order] = np.cumsum(new) - 1
    return numbers, np.asarray(order[np.flatnonzero(new)])
