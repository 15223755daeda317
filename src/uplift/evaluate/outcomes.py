"""What one system did with each test item, and the scores, intervals and paired tests that follow from it.

Everything said about a system is a function of its ``Outcomes``; two systems are compared item by item.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uplift.core.errors import DataError
from uplift.evaluate import metrics, statistics
from uplift.evaluate.statistics import Floats, Interval

CONFUSION_METRICS: Mapping[str, Callable[[Floats], Floats]] = {
    "accuracy": metrics.accuracy,
    "macro_f1": metrics.macro_f1,
    "macro_precision": metrics.macro_precision,
    "macro_recall": metrics.macro_recall,
    "micro_f1": metrics.micro_f1,
    "mcc": metrics.matthews,
}
LOWER_IS_BETTER = frozenset({"nll", "brier", "calibration_error", "perplexity", "bits_per_byte"})
BALANCED = 1.5
"""Largest over smallest class up to which accuracy is the main metric (60 to 40)."""


@dataclass(frozen=True)
class Outcomes:
    """One system on N test items, in the order of ``ids``.

    nll: nats lost on each item (N,): -ln p(true label), or the sum over its scored tokens. units: what ``nll`` is divided by
    (N,): 1 a labelled item, the UTF-8 bytes of the scored text for language. truth, predicted: class indices (N,), None
    for language tasks. labels: class names. metric: the main metric.
    """

    ids: tuple[str, ...]
    nll: Floats
    units: Floats
    metric: str
    truth: NDArray[np.int64] | None = None
    predicted: NDArray[np.int64] | None = None
    labels: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def correct(self) -> NDArray[np.bool_] | None:
        """Which items got the true label (N,)."""
        return None if self.truth is None or self.predicted is None else self.truth == self.predicted

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Counts (C, C), row = truth. Raises DataError for a task without labels."""
        if self.truth is None or self.predicted is None:
            raise DataError("there are no labels to count", fix="use `task: {use: classify, ...}`")
        return metrics.confusion_matrix(self.truth, self.predicted, len(self.labels))

    @property
    def fingerprint(self) -> str:
        """12 hex digits that identify the items, their order and their true labels."""
        truth = [] if self.truth is None else self.truth.tolist()
        return hashlib.sha256("\x1f".join([*self.ids, *map(str, truth)]).encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        """Plain lists for ``outcomes.json`` of a run folder."""
        optional = {
            "truth": self.truth,
            "predicted": self.predicted,
            "correct": self.correct,
        }
        return {
            "metric": self.metric,
            "labels": list(self.labels),
            "ids": list(self.ids),
            "nll": self.nll.tolist(),
            "units": self.units.tolist(),
            **{name: None if value is None else value.tolist() for name, value in optional.items()},
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Outcomes:
        """The inverse of ``to_json``. Raises DataError when the lists do not fit together."""
        ids = tuple(content["ids"])
        result = cls(
            ids=ids,
            nll=np.asarray(content["nll"], dtype=np.float64),
            units=np.asarray(content["units"], dtype=np.float64),
            metric=content["metric"],
            truth=None if content["truth"] is None else np.asarray(content["truth"], dtype=np.int64),
            predicted=None if content["predicted"] is None else np.asarray(content["predicted"], dtype=np.int64),
            labels=tuple(content["labels"]),
        )
        columns = (result.nll, result.units, result.truth, result.predicted)
        if any(column is not None and len(column) != len(ids) for column in columns):
            raise DataError(
                "the outcomes of a run are damaged",
                why="its lists have different lengths",
                fix="run the arm again",
            )
        return result


def _labelled(outcomes: Outcomes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Truth and predictions (N,), or DataError where the task has no labels."""
    if outcomes.truth is None or outcomes.predicted is None:
        raise DataError("there are no labels to count", fix="use `task: {use: classify, ...}`")
    return outcomes.truth, outcomes.predicted


def higher_is_better(metric: str) -> bool:
    """Whether a larger value of ``metric`` is better."""
    return metric not in LOWER_IS_BETTER


def main_metric(truth: NDArray[np.int64] | None, classes: int) -> str:
    """``accuracy`` when classes are balanced (largest <= 1.5 x smallest, 60/40), else ``macro_f1``; language: bits per byte."""
    if truth is None:
        return "bits_per_byte"
    counts = np.bincount(truth, minlength=classes)
    return "accuracy" if counts.min() > 0 and counts.max() <= BALANCED * counts.min() else "macro_f1"


def score(outcomes: Outcomes, metric: str | None = None) -> float:
    """The value of ``metric`` (default: the main one) on all items."""
    metric = metric or outcomes.metric
    if metric in CONFUSION_METRICS:
        return float(CONFUSION_METRICS[metric](outcomes.confusion.astype(np.float64)))
    return _per_unit(metric, outcomes.nll.sum(), outcomes.units.sum())


def _per_unit(metric: str, nll: Any, units: Any) -> Any:
    """nats per unit, in bits for ``bits_per_byte``."""
    return nll / units / (math.log(2) if metric == "bits_per_byte" else 1.0)


def score_interval(
    outcomes: Outcomes,
    metric: str | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Value and 95 % interval over items: BCa bootstrap; Wilson's for an accuracy of exactly 0 or 1."""
    metric = metric or outcomes.metric
    if metric in CONFUSION_METRICS:
        counts = outcomes.confusion
        right = int(np.trace(counts))
        if metric == "accuracy" and len(outcomes) and right in (0, len(outcomes)):
            return statistics.wilson_interval(right, len(outcomes))
        return statistics.bootstrap_counts(counts, CONFUSION_METRICS[metric], resamples=resamples, seed=seed)
    scale = math.log(2) if metric == "bits_per_byte" else 1.0
    return statistics.bootstrap_mean(outcomes.nll / scale, outcomes.units, resamples=resamples, seed=seed)


def replicates(runs: Sequence[Outcomes], metric: str, *, resamples: int = 2000, seed: int = 0) -> Floats:
    """Bootstrap replicates (R,) of the mean score over ``runs`` (one per seed), resampling seeds and items.

    Equal numbers of runs and items draw equally: differences of replicates are paired.
    """
    if metric in CONFUSION_METRICS:
        classes = len(runs[0].labels)
        pairs = [_labelled(run) for run in runs]
        cells = np.stack([truth * classes + predicted for truth, predicted in pairs])
        formula = CONFUSION_METRICS[metric]
        return statistics.hierarchical_counts(cells, (classes, classes), formula, resamples=resamples, seed=seed)
    nll, units = (
        np.stack([run.nll for run in runs]),
        np.stack([run.units for run in runs]),
    )
    return _per_unit(
        metric,
        statistics.hierarchical_ratios(nll, units, resamples=resamples, seed=seed),
        1.0,
    )


@dataclass(frozen=True)
class Contrast:
    """First minus second system on the same items: difference with interval, p-value and the test's name."""

    difference: Interval
    p: float
    test: str


def require_same_items(first: Outcomes, second: Outcomes) -> None:
    """Raise DataError unless both hold the same items, in the same order, with the same truth."""
    if first.fingerprint != second.fingerprint:
        why = f"{len(first)} items ({first.fingerprint}) against {len(second)} items ({second.fingerprint})"
        raise DataError(
            "two systems were measured on different test items",
            why=why,
            fix="give them the same data and split",
        )


def contrast(
    first: Sequence[Outcomes],
    second: Sequence[Outcomes],
    metric: str,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Contrast:
    """Paired comparison of two systems, each with one ``Outcomes`` per seed (equally many, same seeds in order).

    One seed: McNemar's exact test (accuracy) or a permutation test. Several: bootstrap over seeds and items.
    """
    for one, other in zip(first, second, strict=True):
        require_same_items(one, other)
    drawn = {"resamples": resamples, "seed": seed}
    differences = replicates(first, metric, **drawn) - replicates(second, metric, **drawn)
    value = float(np.mean([score(run, metric) for run in first]) - np.mean([score(run, metric) for run in second]))
    interval = statistics.percentile_interval(value, differences)
    if len(first) > 1:
        low, high = (differences <= 0).sum(), (differences >= 0).sum()
        p = min(1.0, 2 * (min(low, high) + 1) / (len(differences) + 1))
        return Contrast(
            interval,
            1.0 if np.ptp(differences) == 0 and value == 0 else p,
            "paired bootstrap over seeds and items",
        )
    return Contrast(interval, *_single_seed_test(first[0], second[0], metric, seed))


def _single_seed_test(first: Outcomes, second: Outcomes, metric: str, seed: int) -> tuple[float, str]:
    if metric == "accuracy":
        (truth, one), (_, other) = _labelled(first), _labelled(second)
        return statistics.mcnemar(one == truth, other == truth), "McNemar exact"
    if metric in CONFUSION_METRICS:
        paired = statistics.PairedOutcomes(first.truth, first.predicted, second.predicted, len(first.labels))  # type: ignore[arg-type]
        return statistics.permutation_difference(paired, CONFUSION_METRICS[metric], seed=seed), "paired permutation"
    return statistics.permutation_test(first.nll - second.nll, seed=seed), "paired permutation"


def chance_level(outcomes: Outcomes, metric: str) -> float:
    """The score expected if predictions had nothing to do with the items: same label shares, independent of the truth."""
    counts = outcomes.confusion
    blind = np.outer(counts.sum(1), counts.sum(0)) / max(1, counts.sum())
    return float(CONFUSION_METRICS[metric](blind))


def calibrated_bins(probabilities: Floats, truth: NDArray[np.int64]) -> list[metrics.CalibrationBin]:
    """Equal-mass bins of the top label's probability (N, C) against whether it was right."""
    predicted = probabilities.argmax(1)
    return metrics.calibration_bins(probabilities.max(1), predicted == truth)
