"""What needs no language model: TF-IDF with logistic regression, and always the same answer. N items, C labels."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline

from uplift.core.errors import DataError
from uplift.core.values import Sample
from uplift.data.formats import content_text
from uplift.evaluate.metrics import negative_log_likelihood
from uplift.evaluate.statistics import Floats
from uplift.evaluate.tasks import Measured, measure_labels

INVERSE_PENALTIES = (0.3, 1.0, 3.0, 10.0)
"""Tried values of C; the one with the lowest loss on held-out training rows is taken."""
FOLDS = 3


@dataclass(frozen=True)
class Baseline:
    """A fitted baseline: what was measured, training seconds, number of weights and the bytes they take (fp64)."""

    measured: Measured
    seconds: float
    parameters: int
    size_bytes: int
    note: str


def _arrays(samples: Sequence[Sample]) -> tuple[list[str], NDArray[np.int64]]:
    labelled = [sample for sample in samples if sample.label is not None]
    return [content_text(sample) for sample in labelled], np.array([sample.label for sample in labelled], dtype=np.int64)


def tfidf(
    train: Sequence[Sample],
    test: Sequence[Sample],
    labels: Sequence[str],
    validation: Sequence[Sample] = (),
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Baseline:
    """TF-IDF of word 1-2 grams and multinomial logistic regression, its penalty chosen without looking at the test part.

    The penalty with the lowest log loss is taken, on ``validation`` when it has rows, else by 3-fold cross-validation on
    ``train``. Raises DataError when fewer than two labels occur in training.
    """
    started = time.perf_counter()
    texts, truth = _arrays(train)
    if len(set(truth.tolist())) < 2:
        raise DataError("a classifier needs training rows of at least two labels", where="data.train")
    chosen = _choose_penalty(texts, truth, _arrays(validation), seed)
    model = _fit(_pipeline(chosen, seed), texts, truth)
    seconds = time.perf_counter() - started
    begun = time.perf_counter()
    test_texts, test_truth = _arrays(test)
    probabilities = _probabilities(model, test_texts, len(labels))
    measured = measure_labels(
        [sample.id for sample in test if sample.label is not None],
        test_truth,
        probabilities,
        labels,
        resamples=resamples,
        seed=seed,
        seconds=time.perf_counter() - begun,
    )
    classifier = model[-1]
    weights = int(classifier.coef_.size + classifier.intercept_.size)
    return Baseline(measured, seconds, weights, 8 * weights, f"C = {chosen:g}, {len(model[0].vocabulary_)} word 1-2 grams")


def majority(train: Sequence[Sample], test: Sequence[Sample], labels: Sequence[str], *, resamples: int = 2000) -> Baseline:
    """Always the most frequent training label, with the training shares as probabilities."""
    _, truth = _arrays(train)
    if len(truth) == 0:
        raise DataError("there are no labelled training rows", where="data.train")
    shares = np.bincount(truth, minlength=len(labels)) / len(truth)
    _, test_truth = _arrays(test)
    ids = [sample.id for sample in test if sample.label is not None]
    measured = measure_labels(ids, test_truth, np.tile(shares, (len(ids), 1)), labels, resamples=resamples)
    return Baseline(measured, 0.0, len(labels), 8 * len(labels), f"always `{labels[int(shares.argmax())]}`")


def _pipeline(inverse_penalty: float, seed: int) -> Pipeline:
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    return make_pipeline(words, LogisticRegression(C=inverse_penalty, max_iter=1000, random_state=seed))


def _fit(model: Pipeline, texts: Sequence[str], truth: NDArray[np.int64]) -> Pipeline:
    try:
        return model.fit(texts, truth)
    except ValueError as error:  # no word at all in the training rows
        raise DataError("the training rows hold no words", where="data.train", why=str(error)) from error


def _probabilities(model: Pipeline, texts: Sequence[str], classes: int) -> Floats:
    """(N, C), 0 for labels that training did not show."""
    result = np.zeros((len(texts), classes))
    if texts:
        result[:, model[-1].classes_] = model.predict_proba(texts)
    return result


def _choose_penalty(
    texts: Sequence[str], truth: NDArray[np.int64], validation: tuple[list[str], NDArray[np.int64]], seed: int
) -> float:
    losses = {}
    classes = int(max([*truth.tolist(), *validation[1].tolist()])) + 1
    folds = min(FOLDS, int(np.bincount(truth)[np.unique(truth)].min()))
    if not len(validation[1]) and folds < 2:  # too few rows of a label to hold any out
        return 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a weakly penalised fit may stop early: it is only a candidate
        for penalty in INVERSE_PENALTIES:
            model = _pipeline(penalty, seed)
            if len(validation[1]):
                held_out, answers = _probabilities(_fit(model, texts, truth), validation[0], classes), validation[1]
            else:
                splits = StratifiedKFold(folds, shuffle=True, random_state=seed)
                known = np.unique(truth)
                held_out = np.zeros((len(truth), classes))
                held_out[:, known] = cross_val_predict(model, list(texts), truth, cv=splits, method="predict_proba")
                answers = truth
            losses[penalty] = float(np.minimum(negative_log_likelihood(answers, held_out), 50.0).mean())
    return min(losses, key=lambda penalty: losses[penalty])
