"""Measures a model on the samples of its task, and says it the way reports do. N items, C labels."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from uplift.core import report
from uplift.core.errors import DataError
from uplift.core.recipe import Task
from uplift.core.values import Sample, derive_seed
from uplift.data.chat import Encoder
from uplift.evaluate import metrics, statistics
from uplift.evaluate.metrics import CalibrationBin
from uplift.evaluate.outcomes import (
    CONFUSION_METRICS,
    Outcomes,
    calibrated_bins,
    contrast,
    higher_is_better,
    main_metric,
    score_interval,
)
from uplift.evaluate.statistics import Floats, Interval
from uplift.learn import scoring
from uplift.model.language_model import LanguageModel


@dataclass(frozen=True)
class Measured:
    """What was measured. ``metrics``: every metric with its interval, the main one (``outcomes.metric``) included.

    ``probabilities`` (N, C) among the labels; ``label_mass`` (N,) what the model gives to all label words together.
    ``notes`` say which choices were made. ``seconds``: time the model took.
    """

    outcomes: Outcomes
    metrics: dict[str, Interval]
    probabilities: Floats | None = None
    label_mass: Floats | None = None
    calibration: tuple[CalibrationBin, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    prefix: int = 0
    """Leading prompt tokens that were run once for all items."""

    @property
    def main(self) -> Interval:
        """The main metric."""
        return self.metrics[self.outcomes.metric]

    @property
    def correct(self) -> NDArray[np.bool_] | None:
        """Which items got the true label (N,)."""
        return self.outcomes.correct

    @property
    def predicted(self) -> NDArray[np.int64] | None:
        """Predicted class indices (N,)."""
        return self.outcomes.predicted

    @property
    def nll(self) -> Floats:
        """Nats lost on each item (N,)."""
        return self.outcomes.nll


def chosen_rows(samples: Sequence[Sample], limit: int | None) -> list[int]:
    """Indices of the rows to measure: all, or the ``limit`` with the lowest hash, the same ones in every run."""
    if limit is None or limit >= len(samples):
        return list(range(len(samples)))
    return sorted(sorted(range(len(samples)), key=lambda i: derive_seed("test", samples[i].id, i))[:limit])


def evaluate_model(
    model: LanguageModel,
    samples: Sequence[Sample],
    task: Task,
    encoder: Encoder,
    *,
    bootstrap: int = 2000,
    seed: int = 0,
    batch_tokens: int = 4096,
) -> Measured:
    """Measure ``model`` on ``samples`` (at least one). Modes are restored; nothing is trained.

    Classification scores label words (language head) or classes (class head); other tasks give the likelihood of what is
    learned. Raises DataError for no samples, missing labels, or prompts that leave no room for an answer.
    """
    samples = list(samples)
    if not samples:
        raise DataError(
            "there is nothing to evaluate on", where="data.split.test", fix="set `data.split.test: 0.1` or `data.test`"
        )
    started = time.perf_counter()
    if task.use != "classify":
        encoded = encoder.encode_all(samples)
        scored = scoring.score_tokens(model, encoded, batch_tokens)
        return measure_language(
            [sample.id for sample in samples], scored, resamples=bootstrap, seed=seed, seconds=time.perf_counter() - started
        )
    labels = list(model.labels)
    truth = labels_of(samples)
    scores = label_scores(model, samples, encoder, batch_tokens)
    seconds = time.perf_counter() - started
    mass = scores.mass if model.head_kind == "language" else None
    measured = measure_labels(
        [sample.id for sample in samples], truth, scores.normalised(), labels, resamples=bootstrap, seed=seed, seconds=seconds
    )
    return _with(measured, label_mass=mass, prefix=scores.prefix)


def label_scores(model: LanguageModel, samples: Sequence[Sample], encoder: Encoder, batch_tokens: int) -> scoring.LabelScores:
    """Log-probabilities of the labels (N, C): of their words (language head) or of the classes (class head)."""
    if model.head_kind == "class":
        return scoring.score_classes(model, encoder.encode_all(samples), batch_tokens)
    return scoring.score_labels(model, scoring.prompted(samples, model.labels, encoder), batch_tokens)


def labels_of(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """True class indices (N,). Raises DataError for a row without label."""
    for sample in samples:
        if sample.label is None:
            raise DataError("a test row has no label", where=str(sample.origin), fix="label it or leave it out")
    return np.array([sample.label for sample in samples], dtype=np.int64)


def _with(measured: Measured, *, label_mass: Floats | None, prefix: int) -> Measured:
    notes = list(measured.notes)
    if label_mass is not None:
        notes.append(f"the label words hold {100 * label_mass.mean():.1f} % of the model's probability on average")
    if prefix:
        notes.append(f"the first {prefix} tokens, the same in every prompt, were run once")
    return replace(measured, label_mass=label_mass, notes=tuple(notes), prefix=prefix)


# -- from scores to metrics --------------------------------------------------------------------------------------------
def measure_labels(
    ids: Sequence[str],
    truth: NDArray[np.int64],
    probabilities: Floats,
    labels: Sequence[str],
    *,
    resamples: int = 2000,
    seed: int = 0,
    seconds: float = 0.0,
) -> Measured:
    """All classification metrics of label probabilities (N, C), with 95 % intervals over items.

    The main metric is accuracy when the classes are balanced within 60/40 and macro F1 otherwise.
    """
    predicted = probabilities.argmax(1).astype(np.int64)
    nll = metrics.negative_log_likelihood(truth, probabilities)
    main = main_metric(truth, len(labels))
    outcomes = Outcomes(tuple(ids), nll, np.ones(len(ids)), main, truth, predicted, tuple(labels))
    found = {name: score_interval(outcomes, name, resamples=resamples, seed=seed) for name in CONFUSION_METRICS}
    found["nll"] = statistics.bootstrap_mean(nll, resamples=resamples, seed=seed)
    found["brier"] = statistics.bootstrap_mean(metrics.brier(truth, probabilities), resamples=resamples, seed=seed)
    bins = calibrated_bins(probabilities, truth)
    found["calibration_error"] = Interval(metrics.calibration_error(bins, debiased=True), math.nan, math.nan, "no interval")
    largest = np.bincount(truth, minlength=len(labels)).max() / len(truth)
    why = "balanced within 60/40" if main == "accuracy" else "not balanced within 60/40"
    notes = (f"main metric {main}: the classes are {why} (the largest holds {100 * largest:.0f} %)",)
    return Measured(outcomes, found, probabilities, None, tuple(bins), notes, seconds)


def measure_language(
    ids: Sequence[str], scored: scoring.TokenScores, *, resamples: int = 2000, seed: int = 0, seconds: float = 0.0
) -> Measured:
    """Bits per byte (main), perplexity and nats per token, each over all tokens together, with intervals over items."""
    if scored.tokens.sum() == 0:
        raise DataError("no token of the test part is scored", fix="check that the test rows hold answers (chat) or text")
    spelt = np.maximum(scored.bytes, 1e-9)  # an item that spells nothing still cannot divide by zero when it is resampled alone
    outcomes = Outcomes(tuple(ids), scored.nll, spelt, "bits_per_byte")
    per_token = statistics.bootstrap_mean(scored.nll, scored.tokens, resamples=resamples, seed=seed)
    value, low, high = (metrics.perplexity(nats, 1.0) for nats in (per_token.value, per_token.low, per_token.high))
    found = {
        "bits_per_byte": score_interval(outcomes, resamples=resamples, seed=seed),
        "perplexity": Interval(value, low, high, per_token.method),
        "nll": per_token,
    }
    notes = (f"{int(scored.tokens.sum())} tokens that spell {int(scored.bytes.sum())} bytes were scored",)
    return Measured(outcomes, found, notes=notes, seconds=seconds)


# -- as a report -------------------------------------------------------------------------------------------------------
def to_interval(interval: Interval) -> report.Interval:
    """The report's form; ends that are not finite become null."""
    return report.Interval(value=interval.value, low=interval.low, high=interval.high)


def class_rows(outcomes: Outcomes) -> tuple[report.ClassScores, ...]:
    """Precision, recall, F1 and support of each label."""
    scores = metrics.class_scores(outcomes.confusion)
    columns = zip(outcomes.labels, scores.precision, scores.recall, scores.f1, scores.support, strict=True)
    return tuple(
        report.ClassScores(label=label, precision=float(p), recall=float(r), f1=float(f), support=int(n))
        for label, p, r, f, n in columns
    )


def confusion_table(outcomes: Outcomes) -> report.Confusion:
    """The confusion matrix, rows are true labels."""
    return report.Confusion(labels=outcomes.labels, counts=tuple(map(tuple, outcomes.confusion.tolist())))


def to_difference(measured: Measured, base: Measured, *, resamples: int = 2000, seed: int = 0) -> report.Difference:
    """Main metric of ``measured`` minus that of ``base`` on the same items. Raises DataError for different items."""
    found = contrast([measured.outcomes], [base.outcomes], measured.outcomes.metric, resamples=resamples, seed=seed)
    gap = found.difference
    return report.Difference(value=gap.value, low=gap.low, high=gap.high, p=found.p, method=found.test)


def to_evaluation(
    measured: Measured, base: Measured | None = None, *, resamples: int = 2000, seed: int = 0
) -> report.Evaluation:
    """The report's evaluation, with the paired difference from the base model where there is one."""
    outcomes, main = measured.outcomes, measured.main
    labelled = outcomes.truth is not None
    bins = [report.CalibrationBin(count=b.count, confidence=b.confidence, accuracy=b.accuracy) for b in measured.calibration]
    return report.Evaluation(
        metric=outcomes.metric,
        value=main.value,
        low=main.low,
        high=main.high,
        base=to_interval(base.metrics[outcomes.metric]) if base else None,
        difference=to_difference(measured, base, resamples=resamples, seed=seed) if base else None,
        higher_is_better=higher_is_better(outcomes.metric),
        items=len(outcomes),
        metrics={name: to_interval(value) for name, value in measured.metrics.items()},
        base_metrics={name: to_interval(value) for name, value in base.metrics.items()} if base else {},
        classes=class_rows(outcomes) if labelled else (),
        confusion=confusion_table(outcomes) if labelled else None,
        calibration=tuple(bins),
    )
