"""How much of the test part the training part already holds: exact, normalised, and by shared 13-word runs.

The 13-gram rule is that of Brown et al. 2020 ("Language models are few-shot learners", appendix C): lower case, punctuation
dropped, an overlap of 13 words counts. A shorter text counts when all its words are those of a training text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from uplift.core.values import Origin, Sample
from uplift.data.formats import content_text
from uplift.data.rows import excerpt
from uplift.data.splitting import normalized
from uplift.data.word_runs import KnownHashes, blocks, hash_runs, hash_words

GRAM = 13
EXAMPLES = 5


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
    hashes, owners = hash_runs(hash_words(test), GRAM)
    wanted = KnownHashes(hashes)
    found = np.zeros(len(wanted.hashes), dtype=bool)
    for block in blocks(train):
        runs, _ = hash_runs(hash_words(block), GRAM)
        found[wanted.find(runs)[1]] = True
    places, which = wanted.find(hashes)
    return (np.bincount(owners[places[found[which]]], minlength=len(test)) > 0).tolist()
