"""Curriculum by length: starts with short samples and lets longer ones in as training goes on.

When: pretraining or fine-tuning from a weak start on text of very different lengths; to reach a useful model in fewer steps.
When not: for the last bit of final quality (the gain is mostly midway); when length says nothing about difficulty.
Paper: Platanios et al. 2019, Competence-based Curriculum Learning; Zhang et al. 2025, arXiv 2506.11300 (as a warm-up).
Cost: memory one number per training sample; time none.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr

from uplift.core.capability import Capabilities
from uplift.core.technique import Technique
from uplift.core.values import Corpus, Effect, Progress, Sample, Signal

BINS = 64
"""Parts of the run over which drawn lengths are averaged for the proof."""


def competence(fraction: float, start: float, warmup: float, pacing: Literal["sqrt", "linear"]) -> float:
    """Share of the samples, shortest first, that is open at ``fraction`` of the run: from ``start`` to 1 at ``warmup``."""
    if fraction >= warmup:
        return 1.0
    done = fraction / warmup
    return start + (1 - start) * done if pacing == "linear" else math.sqrt(start**2 + (1 - start**2) * done)


def length_of(sample: Sample) -> int:
    """Characters of a sample."""
    return len(sample.text) if sample.text is not None else sum(len(message.content) for message in sample.messages)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's correlation, ties at their mean rank; 0 when one of the two is constant or there are fewer than 3 values."""
    if len(first) < 3:
        return 0.0
    ranks = [[sum(u < v for u in values) + sum(u == v for u in values) / 2 for v in values] for values in (first, second)]
    centred = [[rank - sum(values) / len(values) for rank in values] for values in ranks]
    size = math.sqrt(math.prod(sum(value**2 for value in values) for values in centred))
    return sum(a * b for a, b in zip(*centred, strict=True)) / size if size else 0.0


class CurriculumLength(Technique):
    """Draws only samples within the current competence; after the warm-up the order is random as usual."""

    use: Literal["curriculum_length"] = "curriculum_length"
    start: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the samples that is open at the beginning (1: off)."""
    warmup: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the run after which all samples are open."""
    pacing: Literal["sqrt", "linear"] = "sqrt"
    """How the open share grows; `sqrt` opens fast at first."""

    capabilities: ClassVar[Capabilities] = Capabilities(needs=frozenset({"training"}), exclusive=frozenset({"pacing"}))
    off: ClassVar[Mapping[str, Any]] = {"start": 1.0}

    _lengths: array[int] = PrivateAttr(default_factory=lambda: array("q"))
    _sums: list[float] = PrivateAttr(default_factory=lambda: [0.0] * BINS)
    _counts: list[int] = PrivateAttr(default_factory=lambda: [0] * BINS)

    def samples(self, corpus: Corpus) -> Corpus:
        """Learn how lengths are distributed in the training part; nothing is changed."""
        if corpus.part == "train":
            self._lengths = array("q", sorted(length_of(sample) for sample in corpus))
        return corpus

    def weights(self, sample: Sample, progress: Progress) -> float:
        """1 when the share of shorter training samples is below the competence, else 0."""
        open_share = competence(progress.fraction, self.start, self.warmup, self.pacing)
        if open_share >= 1.0:
            return 1.0
        return float(bisect_left(self._lengths, length_of(sample)) < open_share * len(self._lengths))

    def observe(self, progress: Progress, metrics: Mapping[str, float]) -> list[Signal]:
        """Note how long the drawn samples were."""
        if "batch_mean_length" in metrics:
            place = min(BINS - 1, int(progress.fraction * BINS))
            self._sums[place] += metrics["batch_mean_length"]
            self._counts[place] += 1
        return []

    def state(self) -> dict[str, Any]:
        """Drawn lengths by part of the run."""
        return {"sums": list(self._sums), "counts": list(self._counts)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the drawn lengths."""
        self._sums, self._counts = list(state["sums"]), list(state["counts"])

    def effect(self) -> Effect:
        """Rank correlation between when and how long, over the warm-up; holds when positive."""
        early = [i for i in range(BINS) if self._counts[i] and i <= self.warmup * BINS]
        means = [self._sums[i] / self._counts[i] for i in early]
        value = rank_correlation([float(i) for i in early], means)
        ends = (
            f"mean tokens per sample {means[0]:.3g} at first, {means[-1]:.3g} at the end of the warm-up"
            if means
            else "no steps"
        )
        return Effect(self.use, "shorter samples came first", value, value > 0, ends)
