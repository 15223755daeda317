"""Metrics against hand-worked cases and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from sklearn import metrics as reference

from uplift.evaluate import metrics

TRUTH = np.array([0, 0, 0, 1, 1, 2])
GUESS = np.array([0, 0, 1, 1, 2, 0])


def test_hand_worked_confusion_and_scores() -> None:
    confusion = metrics.confusion_matrix(TRUTH, GUESS, 3)
    assert confusion.tolist() == [[2, 1, 0], [0, 1, 1], [1, 0, 0]]
    scores = metrics.class_scores(confusion)
    assert scores.precision == pytest.approx([2 / 3, 1 / 2, 0])
    assert scores.recall == pytest.approx([2 / 3, 1 / 2, 0])
    assert scores.f1 == pytest.approx([2 / 3, 1 / 2, 0])
    assert scores.support.tolist() == [3, 2, 1]
    assert metrics.accuracy(confusion) == pytest.approx(0.5)
    assert metrics.macro_f1(confusion) == pytest.approx((2 / 3 + 1 / 2) / 3)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 5),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60),
)
def test_equal_to_scikit_learn(classes: int, pairs: list[tuple[int, int]]) -> None:
    truth, guess = (np.array(column) % classes for column in zip(*pairs, strict=True))
    confusion = metrics.confusion_matrix(truth, guess, classes)
    labels = list(range(classes))
    assert (confusion == reference.confusion_matrix(truth, guess, labels=labels)).all()
    per_class = reference.precision_recall_fscore_support(truth, guess, labels=labels, zero_division=0)
    scores = metrics.class_scores(confusion)
    for ours, theirs in zip(
        (scores.precision, scores.recall, scores.f1, scores.support),
        per_class,
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
    macro = reference.precision_recall_fscore_support(truth, guess, average="macro", zero_division=0)[:3]
    ours_macro = [
        metrics.macro_precision(confusion),
        metrics.macro_recall(confusion),
        metrics.macro_f1(confusion),
    ]
    np.testing.assert_allclose(ours_macro, macro, rtol=0, atol=1e-12)
    assert float(metrics.micro_f1(confusion)) == pytest.approx(reference.f1_score(truth, guess, average="micro"), abs=1e-12)
    assert float(metrics.accuracy(confusion)) == pytest.approx(reference.accuracy_score(truth, guess), abs=1e-12)
    if len(set(truth) | set(guess)) > 1:  # scikit-learn's value for a single class differs between versions
        assert float(metrics.matthews(confusion)) == pytest.approx(reference.matthews_corrcoef(truth, guess), abs=1e-12)


def test_formulas_run_over_stacked_confusions() -> None:
    stack = np.random.default_rng(0).integers(0, 20, size=(7, 3, 3))
    for formula in (
        metrics.accuracy,
        metrics.macro_f1,
        metrics.matthews,
        metrics.micro_f1,
    ):
        np.testing.assert_allclose(formula(stack), [formula(one) for one in stack], rtol=0, atol=1e-15)


def test_empty_class_convention() -> None:
    confusion = metrics.confusion_matrix(np.array([0, 0]), np.array([0, 0]), 3)
    assert metrics.macro_f1(confusion) == 1.0, "classes that occur nowhere are left out"
    missed = metrics.confusion_matrix(np.array([0, 1]), np.array([0, 0]), 2)
    assert metrics.class_scores(missed).precision[1] == 0.0, "a class never predicted has precision 0"
    assert metrics.matthews(missed) == 0.0


def test_wrong_shapes_and_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="equally long"):
        metrics.confusion_matrix(np.array([0, 1]), np.array([0]), 2)
    with pytest.raises(ValueError, match="outside"):
        metrics.confusion_matrix(np.array([0, 2]), np.array([0, 1]), 2)


def test_brier_and_likelihood_equal_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    truth, probabilities = rng.integers(0, 3, 50), rng.dirichlet(np.ones(3), 50)
    assert metrics.negative_log_likelihood(truth, probabilities).mean() == pytest.approx(
        reference.log_loss(truth, probabilities, labels=[0, 1, 2]), abs=1e-12
    )
    binary = np.stack([1 - probabilities[:, 0], probabilities[:, 0]], axis=1)
    expected = 2 * reference.brier_score_loss(truth % 2, binary[:, 1], scale_by_half=True)
    assert metrics.brier(truth % 2, binary).mean() == pytest.approx(expected, abs=1e-12)


def test_calibration_error_by_hand_and_order_free() -> None:
    confidence, correct = np.array([0.6, 0.6, 0.9, 0.9]), np.array([1, 0, 1, 1])
    bins = metrics.calibration_bins(confidence, correct, bins=2)
    assert [(b.count, b.confidence, b.accuracy) for b in bins] == [
        (2, 0.6, 0.5),
        (2, 0.9, 1.0),
    ]
    assert metrics.calibration_error(bins) == pytest.approx(0.1)
    rng = np.random.default_rng(2)
    confidence, correct = (
        rng.choice([0.5, 0.7, 0.8, 0.95], 300),
        rng.integers(0, 2, 300),
    )
    shuffled = rng.permutation(300)
    one = metrics.calibration_error(metrics.calibration_bins(confidence, correct))
    other = metrics.calibration_error(metrics.calibration_bins(confidence[shuffled], correct[shuffled]))
    assert one == pytest.approx(other, abs=1e-12)


def test_perfectly_calibrated_sampler_has_error_near_zero() -> None:
    rng = np.random.default_rng(3)
    plain, debiased = [], []
    for _ in range(50):
        confidence = rng.uniform(0.5, 1, 500)
        bins = metrics.calibration_bins(confidence, rng.uniform(size=500) < confidence)
        plain.append(metrics.calibration_error(bins))
        debiased.append(metrics.calibration_error(bins, debiased=True))
    assert np.mean(debiased) < 0.7 * np.mean(plain)
    confidence = rng.uniform(0.5, 1, 200_000)
    assert metrics.calibration_error(metrics.calibration_bins(confidence, rng.uniform(size=200_000) < confidence)) < 0.01
    wrong = metrics.calibration_bins(np.full(1000, 0.9), rng.uniform(size=1000) < 0.5)
    assert metrics.calibration_error(wrong, debiased=True) == pytest.approx(0.4, abs=0.05)


def test_bits_per_byte_does_not_depend_on_the_tokenizer() -> None:
    text_bytes = 12
    by_byte = 12 * math.log(256)  # twelve tokens, uniform over 256
    by_pair = 6 * math.log(256**2)  # six tokens, uniform over all pairs
    assert metrics.bits_per_byte(by_byte, text_bytes) == pytest.approx(8.0)
    assert metrics.bits_per_byte(by_pair, text_bytes) == pytest.approx(8.0)
    assert metrics.perplexity(12 * math.log(7), 12) == pytest.approx(7.0)
    assert metrics.perplexity(1e9, 1) == math.inf
    assert math.isnan(metrics.perplexity(1.0, 0)) and math.isnan(metrics.bits_per_byte(1.0, 0))
