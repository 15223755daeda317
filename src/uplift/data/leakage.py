"""How much of the test part the training part already holds: exact, normalised, and by shared 13-word runs.

The 13-gram rule is that of Brown et al. 2020 ("Language models are few-shot learners", appendix C): lower case, punctuation
dropped, an overlap of 13 words counts. A shorter text counts when all its words are those of a training text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from uplift.core.values import Origin, Sample
from uplift.data.formats import content_text
from uplift.data.rows import excerpt
from uplift.data.splitting import normalized

GRAM = 13
EXAMPLES = 5
WORD = re.compile(r"\w+")
BASE = np.uint64(0x9E3779B97F4A7C15)
BLOCK = 4096
"""Texts hashed at a time; bounds memory."""


@dataclass(frozen=True)
class Overlap:
    """One test sample found in training: how (``exact``, ``normalized``, ``ngram``), where both are, how it begins."""

    kind: str
    test: Origin
    train: Origin | None
    excerpt: str


@dataclass(frozen=True)
class Leakage:
    """Counts of test samples, each wider than the one before (an exact match is also a normalised one and an n-gram one)."""

    exact: int = 0
    normalized: int = 0
    ngram: int = 0
    tested: int = 0
    examples: tuple[Overlap, ...] = ()

    @property
    def share(self) -> float:
        """Share of the test samples that overlap in any way."""
        return self.ngram / self.tested if self.tested else 0.0


def find_leakage(train: Sequence[Sample], test: Sequence[Sample]) -> Leakage:
    """Which test samples overlap with training, by what they ask (answers and labels do not count)."""
    if not train or not test:
        return Leakage(tested=len(test))
    exact: dict[str, Origin] = {}
    same: dict[str, Origin] = {}
    for sample in train:
        text = content_text(sample)
        exact.setdefault(text, sample.origin)
        same.setdefault(normalized(text), sample.origin)
    texts = [content_text(sample) for sample in test]
    runs = _share_runs([content_text(sample) for sample in train], texts)
    kinds = [_kind(text, exact, same, run) for text, run in zip(texts, runs, strict=True)]
    examples = [
        Overlap(kind, sample.origin, same.get(normalized(text)), excerpt(text))
        for sample, text, kind in zip(test, texts, kinds, strict=True)
        if kind
    ]
    counts = {kind: kinds.count(kind) for kind in ("exact", "normalized", "ngram")}
    near = counts["exact"] + counts["normalized"]
    return Leakage(counts["exact"], near, near + counts["ngram"], len(test), tuple(examples[:EXAMPLES]))


def _kind(text: str, exact: dict[str, Origin], same: dict[str, Origin], shares_run: bool) -> str:
    if text in exact:
        return "exact"
    if normalized(text) in same:
        return "normalized"
    return "ngram" if shares_run else ""


def _share_runs(train: Sequence[str], test: Sequence[str]) -> list[bool]:
    """For each test text: does it share a run of ``GRAM`` words with training, or all its words when it is shorter?"""
    known: dict[str, int] = {}
    own = [_hashes(block, known) for block in _blocks(test)]
    wanted = np.unique(np.concatenate([hashes for hashes, _ in own]))
    found = np.zeros(len(wanted), dtype=bool)
    for block in _blocks(train):
        hashes, _ = _hashes(block, known)
        places = np.searchsorted(wanted, hashes).clip(max=len(wanted) - 1)
        found[places[wanted[places] == hashes]] = True
    result: list[bool] = []
    for hashes, owners in own:
        hit = found[np.searchsorted(wanted, hashes)]
        count = int(owners.max(initial=-1)) + 1
        result += np.bincount(owners[hit], minlength=count)[:count].astype(bool).tolist()
    return result


def _blocks(texts: Sequence[str]) -> Iterable[Sequence[str]]:
    return (texts[start : start + BLOCK] for start in range(0, len(texts), BLOCK))


def _hashes(texts: Sequence[str], known: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """64-bit hashes of every run of ``GRAM`` words, and the text each is of. A shorter text gives one hash of all its words.

    ``known`` numbers the words, so equal words have equal numbers over all calls. A text without words is one word.
    """
    words = [[known.setdefault(word, len(known)) for word in WORD.findall(text.lower()) or [text.strip()]] for text in texts]
    lengths = np.array([len(item) for item in words])
    flat = np.concatenate([np.array(item, dtype=np.uint64) for item in words])
    values = (flat + np.uint64(1)) * BASE
    values ^= values >> np.uint64(29)
    starts = np.cumsum(lengths) - lengths
    owners = np.repeat(np.arange(len(texts)), lengths)
    left = np.repeat(starts + lengths, lengths) - np.arange(len(flat))
    hashes = np.zeros(len(flat), dtype=np.uint64)
    padded = np.concatenate([values, np.zeros(GRAM, dtype=np.uint64)])
    for offset in range(GRAM):
        inside = np.where(left > offset, padded[offset : offset + len(flat)], np.uint64(0))
        hashes = hashes * np.uint64(0xBF58476D1CE4E5B9) + inside
    first = np.arange(len(flat)) == np.repeat(starts, lengths)
    kept = (left >= GRAM) | (first & (np.repeat(lengths, lengths) < GRAM))
    return hashes[kept], owners[kept]
