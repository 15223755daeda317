"""Intervals cover, tests reject as often as they promise, equal systems are never told apart."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import stats

from uplift.evaluate import metrics, statistics


def _confusion(rng: np.random.Generator, items: int) -> np.ndarray:
    cells = np.array([[0.35, 0.1], [0.15, 0.4]])
    return rng.multinomial(items, cells.ravel()).reshape(2, 2)


def test_intervals_cover_what_they_promise() -> None:
    rng, truth = np.random.default_rng(0), np.array([[0.35, 0.1], [0.15, 0.4]])
    inside = {"accuracy": 0, "macro_f1": 0, "wilson": 0, "mean": 0}
    runs = 1000
    for run in range(runs):
        counts = _confusion(rng, 300)
        for name in ("accuracy", "macro_f1"):
            formula = getattr(metrics, name)
            interval = statistics.bootstrap_counts(counts, formula, resamples=1000, seed=run)
            inside[name] += not interval.excludes(float(formula(truth)))
        inside["wilson"] += not statistics.wilson_interval(np.trace(counts), 300).excludes(0.75)
        values = rng.gamma(2.0, size=100)
        inside["mean"] += not statistics.bootstrap_mean(values, resamples=500, seed=run).excludes(2.0)
    for name, count in inside.items():
        assert 0.93 <= count / runs <= 0.97, f"{name}: covered {count / runs:.3f}"


def test_tests_reject_equal_systems_as_often_as_they_promise() -> None:
    rng, runs = np.random.default_rng(1), 1500
    rejected = {"exact": 0, "mid": 0, "permutation": 0, "bootstrap": 0}
    for run in range(runs):
        skill = rng.uniform(0.3, 1.0, 400)
        first, second = rng.uniform(size=400) < skill, rng.uniform(size=400) < skill
        rejected["exact"] += statistics.mcnemar(first, second) < 0.05
        rejected["mid"] += statistics.mcnemar(first, second, mid_p=True) < 0.05
        noise = rng.normal(size=60)
        rejected["permutation"] += statistics.permutation_test(noise, resamples=399, seed=run) <= 0.05
        truth = rng.integers(0, 2, 400)
        paired = statistics.PairedOutcomes(
            truth,
            np.where(first, truth, 1 - truth),
            np.where(second, truth, 1 - truth),
            2,
        )
        rejected["bootstrap"] += statistics.bootstrap_difference(paired, metrics.macro_f1, resamples=400, seed=run).excludes(
            0.0
        )
    assert rejected["exact"] / runs <= 0.06, "the exact test may only be conservative"
    for name in ("mid", "permutation", "bootstrap"):
        assert 0.03 <= rejected[name] / runs <= 0.07, f"{name}: rejected {rejected[name] / runs:.3f}"


def test_permutation_of_macro_f1_keeps_its_error() -> None:
    rng, runs, rejected = np.random.default_rng(5), 400, 0
    for run in range(runs):
        truth = rng.integers(0, 2, 200)
        first, second = (np.where(rng.uniform(size=200) < 0.75, truth, 1 - truth) for _ in range(2))
        paired = statistics.PairedOutcomes(truth, first, second, 2)
        rejected += statistics.permutation_difference(paired, metrics.macro_f1, resamples=399, seed=run) <= 0.05
    assert 0.025 <= rejected / runs <= 0.075


def test_identical_systems_give_p_one_and_a_difference_of_zero() -> None:
    rng = np.random.default_rng(2)
    truth, guess = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    paired = statistics.PairedOutcomes(truth, guess, guess, 3)
    interval = statistics.bootstrap_difference(paired, metrics.macro_f1)
    assert (interval.value, interval.low, interval.high) == (
        0.0,
        0.0,
        0.0,
    ) and not interval.excludes(0.0)
    assert statistics.mcnemar(truth == guess, truth == guess) == 1.0
    assert statistics.permutation_test(np.zeros(10)) == 1.0
    assert statistics.permutation_difference(paired, metrics.macro_f1) == 1.0


def test_a_real_difference_is_found() -> None:
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 2, 600)
    good, bad = (np.where(rng.uniform(size=600) < p, truth, 1 - truth) for p in (0.85, 0.7))
    paired = statistics.PairedOutcomes(truth, good, bad, 2)
    assert statistics.bootstrap_difference(paired, metrics.accuracy).low > 0
    assert statistics.mcnemar(good == truth, bad == truth) < 1e-3
    assert statistics.permutation_difference(paired, metrics.accuracy, resamples=999) <= 0.002


@pytest.mark.parametrize(("positive", "negative"), [(0, 0), (1, 0), (7, 2), (30, 51), (400, 330)])
def test_sign_test_equals_scipy(positive: int, negative: int) -> None:
    expected = stats.binomtest(positive, positive + negative, 0.5).pvalue if positive + negative else 1.0
    assert statistics.sign_test(positive, negative) == pytest.approx(expected, rel=1e-9)


def test_wilson_equals_scipy_and_survives_extremes() -> None:
    for successes, trials in ((0, 20), (20, 20), (13, 47)):
        ours = statistics.wilson_interval(successes, trials)
        theirs = stats.binomtest(successes, trials).proportion_ci(method="wilson")
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_bca_equals_scipy_on_the_same_question() -> None:
    values = np.random.default_rng(4).gamma(1.5, size=80)
    ours = statistics.bootstrap_mean(values, resamples=9000, seed=1)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=9000, method="BCa", random_state=1).confidence_interval
    spread = theirs.high - theirs.low
    assert abs(ours.low - theirs.low) < 0.05 * spread and abs(ours.high - theirs.high) < 0.05 * spread


def test_ratio_resamples_whole_items() -> None:
    nll, tokens = np.array([10.0, 2.0, 30.0]), np.array([5.0, 1.0, 10.0])
    interval = statistics.bootstrap_mean(nll, tokens, resamples=500)
    assert interval.value == pytest.approx(42 / 16) and 2.0 <= interval.low <= interval.value <= interval.high <= 3.0


def test_item_order_changes_nothing_for_counts() -> None:
    rng = np.random.default_rng(6)
    truth, first, second = (rng.integers(0, 2, 100) for _ in range(3))
    order = rng.permutation(100)
    one = statistics.bootstrap_difference(statistics.PairedOutcomes(truth, first, second, 2), metrics.macro_f1)
    other = statistics.bootstrap_difference(
        statistics.PairedOutcomes(truth[order], first[order], second[order], 2),
        metrics.macro_f1,
    )
    assert one == other


def test_hierarchical_interval_widens_with_seed_noise_and_equals_items_alone_for_one_seed() -> None:
    rng = np.random.default_rng(7)
    steady = np.tile(rng.uniform(size=400) < 0.8, (5, 1)).astype(float)
    noisy = np.stack([rng.uniform(size=400) < p for p in (0.6, 0.7, 0.8, 0.9, 0.95)]).astype(float)
    width = [
        np.ptp(
            np.quantile(
                statistics.hierarchical_ratios(v, np.ones_like(v), seed=1),
                [0.025, 0.975],
            )
        )
        for v in (steady, noisy)
    ]
    assert width[1] > 1.5 * width[0]
    alone = np.quantile(
        statistics.hierarchical_ratios(steady[:1], np.ones((1, 400)), seed=1),
        [0.025, 0.975],
    )
    plain = statistics.bootstrap_mean(steady[0], seed=2)
    assert alone == pytest.approx([plain.low, plain.high], abs=0.01)


def test_hierarchical_counts_agree_with_means_for_accuracy() -> None:
    rng = np.random.default_rng(8)
    truth = rng.integers(0, 2, 300)
    guesses = np.stack([np.where(rng.uniform(size=300) < p, truth, 1 - truth) for p in (0.7, 0.75, 0.8)])
    counts = statistics.hierarchical_counts(truth * 2 + guesses, (2, 2), metrics.accuracy, seed=3)
    means = statistics.hierarchical_ratios((guesses == truth).astype(float), np.ones((3, 300)), seed=3)
    np.testing.assert_allclose(np.sort(counts), np.sort(means), atol=1e-12)


def test_holm_by_hand() -> None:
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([]) == [] and statistics.holm([0.9, 0.8]) == [1.0, 1.0]


def test_detectable_difference_matches_simulation() -> None:
    rng, items, discordant = np.random.default_rng(9), 1000, 0.2
    effect = statistics.detectable_difference(items, discordant)
    found = 0
    for _ in range(300):
        kinds = rng.multinomial(
            items,
            [(discordant + effect) / 2, (discordant - effect) / 2, 1 - discordant],
        )
        found += statistics.sign_test(int(kinds[0]), int(kinds[1])) < 0.05
    assert 0.7 <= found / 300 <= 0.88


def test_two_thousand_resamples_of_two_thousand_items_are_quick() -> None:
    values = np.random.default_rng(10).uniform(size=2000)
    started = time.process_time()
    statistics.bootstrap_mean(values, resamples=2000)
    assert time.process_time() - started < 5
