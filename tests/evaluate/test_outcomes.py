"""Scores, intervals and contrasts of per-item outcomes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from uplift.core.errors import DataError
from uplift.evaluate import outcomes
from uplift.evaluate.outcomes import Outcomes


def labelled(truth: np.ndarray, predicted: np.ndarray, metric: str = "accuracy") -> Outcomes:
    ids = tuple(f"item-{i}" for i in range(len(truth)))
    nll = np.where(truth == predicted, 0.2, 1.8)
    return Outcomes(ids, nll, np.ones(len(ids)), metric, truth.astype(np.int64), predicted.astype(np.int64), ("bad", "good"))


def flip(rng: np.random.Generator, truth: np.ndarray, rate: float) -> np.ndarray:
    return np.where(rng.uniform(size=len(truth)) < rate, 1 - truth, truth)


def test_json_round_trip_and_damage() -> None:
    one = labelled(np.array([0, 1, 1]), np.array([0, 1, 0]))
    content = one.to_json()
    assert content["correct"] == [True, True, False] and content["predicted"] == [0, 1, 0]
    again = Outcomes.from_json(content)
    assert again.fingerprint == one.fingerprint and (again.nll == one.nll).all() and again.labels == one.labels
    with pytest.raises(DataError, match="damaged"):
        Outcomes.from_json(content | {"nll": [1.0]})


def test_main_metric_follows_class_balance() -> None:
    assert outcomes.main_metric(np.array([0] * 60 + [1] * 40), 2) == "accuracy"
    assert outcomes.main_metric(np.array([0] * 61 + [1] * 39), 2) == "macro_f1"
    assert outcomes.main_metric(np.array([0, 1]), 3) == "macro_f1", "a class without test items is not balanced"
    assert outcomes.main_metric(None, 0) == "bits_per_byte"


def test_perfect_accuracy_still_has_an_uncertain_lower_end() -> None:
    truth = np.tile([0, 1], 20)
    interval = outcomes.score_interval(labelled(truth, truth))
    assert interval.value == 1.0 and 0.85 < interval.low < 1.0 and interval.method == "Wilson"


def test_language_outcomes_score_in_bits_per_byte() -> None:
    nll, size = np.array([8 * math.log(2), 24 * math.log(2)]), np.array([4.0, 4.0])
    one = Outcomes(("a", "b"), nll, size, "bits_per_byte")
    assert outcomes.score(one) == pytest.approx(4.0)
    interval = outcomes.score_interval(one, resamples=200)
    assert 2.0 <= interval.low <= 4.0 <= interval.high <= 6.0
    with pytest.raises(DataError, match="no labels"):
        _ = one.confusion


def test_contrast_finds_differences_and_refuses_other_items() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 500)
    good, bad = labelled(truth, flip(rng, truth, 0.1)), labelled(truth, flip(rng, truth, 0.3))
    found = outcomes.contrast([good], [bad], "accuracy")
    assert found.test == "McNemar exact" and found.p < 1e-6 and found.difference.low > 0.1
    same = outcomes.contrast([good], [good], "macro_f1")
    assert same.p == 1.0 and (same.difference.low, same.difference.high) == (0.0, 0.0)
    other = labelled(1 - truth, truth)
    with pytest.raises(DataError, match="different test items"):
        outcomes.contrast([good], [other], "accuracy")


def test_several_seeds_are_compared_over_seeds_and_items() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, 400)
    good = [labelled(truth, flip(rng, truth, rate)) for rate in (0.1, 0.12, 0.14)]
    bad = [labelled(truth, flip(rng, truth, rate)) for rate in (0.3, 0.28, 0.32)]
    found = outcomes.contrast(good, bad, "accuracy")
    assert "seeds" in found.test and found.p < 0.01 and found.difference.low > 0.05
    same = outcomes.contrast(good, good, "accuracy")
    assert same.p == 1.0 and not same.difference.excludes(0.0)


def test_interval_over_three_seeds_covers_the_mean_of_all_seeds() -> None:
    rng, inside, runs = np.random.default_rng(2), 0, 300
    for run in range(runs):
        truth = np.tile([0, 1], 100)
        skills = rng.normal(0.75, 0.03, size=3)
        seeds = [labelled(truth, flip(rng, truth, 1 - skill)) for skill in skills]
        draws = outcomes.replicates(seeds, "accuracy", resamples=300, seed=run)
        low, high = np.quantile(draws, [0.025, 0.975])
        inside += low <= 0.75 <= high
    assert inside / runs >= 0.88, f"covered {inside / runs:.3f}"


def test_chance_level_is_blind_guessing() -> None:
    rng = np.random.default_rng(3)
    truth = (rng.uniform(size=20_000) < 0.3).astype(int)
    blind = (rng.uniform(size=20_000) < 0.6).astype(int)
    one = labelled(truth, blind)
    expected = 0.3 * 0.6 + 0.7 * 0.4
    assert outcomes.chance_level(one, "accuracy") == pytest.approx(expected, abs=0.01)
    assert outcomes.score(one) == pytest.approx(outcomes.chance_level(one, "accuracy"), abs=0.01)
    assert outcomes.chance_level(one, "mcc") == pytest.approx(0.0, abs=1e-12)
