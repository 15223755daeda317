"""Metrics as formulas over numpy arrays, each written once.

Shapes: N items, C classes; leading dots are any batch of resamples, so the bootstrap runs the same formulas.
Empty classes: 0/0 counts as 0 (a class never predicted has precision 0, a class without items has recall 0), and a class
that is in neither truth nor predictions is left out of macro averages. These are scikit-learn's conventions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def confusion_matrix(truth: Integers, predicted: Integers, classes: int) -> Integers:
    """Counts (C, C): row = true class, column = predicted class.

    Raises ValueError when the two differ in length or hold an index outside 0..C-1.
    """
    truth, predicted = (
        np.asarray(truth, dtype=np.int64),
        np.asarray(predicted, dtype=np.int64),
    )
    if truth.shape != predicted.shape or truth.ndim != 1:
        raise ValueError(f"truth {truth.shape} and predicted {predicted.shape} must be one-dimensional and equally long")
    both = np.concatenate([truth, predicted])
    if len(both) and (both.min() < 0 or both.max() >= classes):
        raise ValueError(f"a class index lies outside 0..{classes - 1}")
    return np.bincount(truth * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def _ratio(part: Floats, whole: Floats) -> Floats:
    """part / whole with 0/0 = 0."""
    return np.divide(
        part,
        whole,
        out=np.zeros(np.broadcast(part, whole).shape),
        where=np.asarray(whole) != 0,
    )


@dataclass(frozen=True)
class ClassScores:
    """Per class, each (..., C): precision, recall, F1, support (items of the class) and whether it occurs at all."""

    precision: Floats
    recall: Floats
    f1: Floats
    support: Floats
    occurs: NDArray[np.bool_]

    def macro(self, scores: Floats) -> Floats:
        """Mean (...,) of ``scores`` (..., C) over the classes that occur in truth or predictions."""
        return _ratio((scores * self.occurs).sum(-1), self.occurs.sum(-1).astype(float))


def class_scores(confusion: NDArray[np.generic]) -> ClassScores:
    """Precision, recall and F1 per class of confusion counts (..., C, C)."""
    counts = np.asarray(confusion, dtype=np.float64)
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    true, predicted = counts.sum(-1), counts.sum(-2)
    f1 = _ratio(2 * right, true + predicted)
    return ClassScores(_ratio(right, predicted), _ratio(right, true), f1, true, (true + predicted) > 0)


def accuracy(confusion: NDArray[np.generic]) -> Floats:
    """Share of items on the diagonal of (..., C, C). For single-label tasks micro precision, recall and F1 equal it."""
    counts = np.asarray(confusion, dtype=np.float64)
    return _ratio(np.trace(counts, axis1=-2, axis2=-1), counts.sum((-2, -1)))


def micro_f1(confusion: NDArray[np.generic]) -> Floats:
    """F1 of the pooled decisions: 2 TP / (2 TP + FP + FN). With one label an item it is the accuracy, by arithmetic."""
    counts = np.asarray(confusion, dtype=np.float64)
    right, total = np.trace(counts, axis1=-2, axis2=-1), counts.sum((-2, -1))
    wrong = total - right  # every wrong item is one false positive and one false negative
    return _ratio(2 * right, 2 * right + 2 * wrong)


def macro_precision(confusion: NDArray[np.generic]) -> Floats:
    """Unweighted mean over occurring classes of the precision."""
    scores = class_scores(confusion)
    return scores.macro(scores.precision)


def macro_recall(confusion: NDArray[np.generic]) -> Floats:
    """Unweighted mean over occurring classes of the recall (balanced accuracy when every class has items)."""
    scores = class_scores(confusion)
    return scores.macro(scores.recall)


def macro_f1(confusion: NDArray[np.generic]) -> Floats:
    """Unweighted mean over occurring classes of the F1 (mean of F1s, not F1 of means)."""
    scores = class_scores(confusion)
    return scores.macro(scores.f1)


def matthews(confusion: NDArray[np.generic]) -> Floats:
    """Matthews correlation of C classes (Gorodkin 2004), -1..1; 0 when truth or predictions are all one class."""
    counts = np.asarray(confusion, dtype=np.float64)
    true, predicted, total = counts.sum(-1), counts.sum(-2), counts.sum((-2, -1))
    covariance = np.trace(counts, axis1=-2, axis2=-1) * total - (true * predicted).sum(-1)
    spread_true, spread_predicted = (
        total**2 - (true**2).sum(-1),
        total**2 - (predicted**2).sum(-1),
    )
    return _ratio(covariance, np.sqrt(spread_true * spread_predicted))


# -- probabilities -----------------------------------------------------------------------------------------------------
def negative_log_likelihood(truth: Integers, probabilities: Floats) -> Floats:
    """-ln p(true class) of each item (N,), from probabilities (N, C); the smallest double bounds p away from 0."""
    chosen = np.asarray(probabilities, dtype=np.float64)[np.arange(len(truth)), truth]
    return -np.log(np.maximum(chosen, np.finfo(np.float64).tiny))


def brier(truth: Integers, probabilities: Floats) -> Floats:
    """Squared distance of each item's probabilities (N, C) to the truth, summed over classes: 0..2 (Brier 1950)."""
    target = np.zeros_like(probabilities, dtype=np.float64)
    target[np.arange(len(truth)), truth] = 1.0
    return ((np.asarray(probabilities, dtype=np.float64) - target) ** 2).sum(-1)


@dataclass(frozen=True)
class CalibrationBin:
    """Items of similar confidence: how many, their mean confidence, and the share that was right."""

    count: int
    confidence: float
    accuracy: float


def calibration_bins(confidence: Floats, correct: NDArray[np.generic], bins: int = 10) -> list[CalibrationBin]:
    """Equal-mass bins by confidence, lowest first. Equal confidences share a bin, so item order changes nothing."""
    confidence, correct = (
        np.asarray(confidence, dtype=np.float64),
        np.asarray(correct, dtype=np.float64),
    )
    if len(confidence) == 0:
        return []
    ranked = np.sort(confidence)
    edges = np.unique(
        ranked[[round(len(ranked) * k / bins) for k in range(1, bins) if round(len(ranked) * k / bins) < len(ranked)]]
    )
    index = np.searchsorted(edges, confidence, side="right")
    members = [np.flatnonzero(index == k) for k in range(len(edges) + 1)]
    return [CalibrationBin(len(m), float(confidence[m].mean()), float(correct[m].mean())) for m in members if len(m)]


def calibration_error(bins: list[CalibrationBin], debiased: bool = False) -> float:
    """Expected calibration error: mean over items of |confidence - accuracy| of the item's bin.

    The plain estimate is biased upwards because each bin's accuracy is noisy. ``debiased`` subtracts that bias, estimated with
    the bin accuracy taken as normal (folded-normal mean; Kumar, Liang, Ma 2019), and never goes below 0.
    """
    total = sum(bin.count for bin in bins)
    if total == 0:
        return 0.0
    error = sum(bin.count / total * abs(bin.confidence - bin.accuracy) for bin in bins)
    if not debiased:
        return error
    return max(0.0, error - sum(bin.count / total * _gap_bias(bin) for bin in bins))


def _gap_bias(bin: CalibrationBin) -> float:
    """E|N(gap, s^2)| - |gap|, where s^2 is the sampling variance of the bin's accuracy."""
    gap = abs(bin.confidence - bin.accuracy)
    spread = math.sqrt(bin.accuracy * (1 - bin.accuracy) / bin.count)
    if spread == 0:
        return 0.0
    z = gap / spread
    return spread * math.sqrt(2 / math.pi) * math.exp(-z * z / 2) + gap * (1 - 2 * NormalDist().cdf(-z)) - gap


# -- language ----------------------------------------------------------------------------------------------------------
def perplexity(nll_sum: float, tokens: float) -> float:
    """exp of the mean negative log-likelihood (nats) over *tokens*, never over sequences; infinite when it overflows."""
    try:
        return math.exp(nll_sum / tokens) if tokens else math.nan
    except OverflowError:
        return math.inf


def bits_per_byte(nll_sum: float, byte_count: float) -> float:
    """Negative log-likelihood (nats) in bits per UTF-8 byte of the scored text: comparable between tokenizers."""
    return nll_sum / math.log(2) / byte_count if byte_count else math.nan
