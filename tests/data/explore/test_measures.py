"""Percentiles and histograms."""

from __future__ import annotations

import numpy as np
from hypothesis import given, strategies as st

from uplift.data.explore.measures import BINS, log_edges, robust_scores, spread_of


@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=300))
def test_every_row_is_in_a_bin(values: list[int]) -> None:
    spread = spread_of(values)
    assert sum(spread.counts) == len(values) and spread.total == sum(values)
    assert len(spread.edges) == len(spread.counts) + 1 and all(np.diff(spread.edges) >= 0.99)
    assert spread.least <= spread.p5 <= spread.p50 <= spread.p99 <= spread.most


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_edges_are_few_and_reach_both_ends(one: int, other: int) -> None:
    low, high = sorted((one, other))
    edges = log_edges(low, high)
    assert edges[0] == low - 0.5 and edges[-1] == high + 0.5 and len(edges) <= BINS + 12


def test_percentiles_by_hand() -> None:
    spread = spread_of(list(range(101)))
    assert (spread.least, spread.p5, spread.p25, spread.p50, spread.p95, spread.p99, spread.most) == (0, 5, 25, 50, 95, 99, 100)
    assert spread.mean == 50.0


def test_robust_scores_are_standard_deviations_that_one_outlier_does_not_move() -> None:
    values = np.random.default_rng(0).normal(10, 2, 2001)
    scores = robust_scores(values)
    assert abs(np.std(scores) - 1) < 0.06
    spoiled = robust_scores(np.append(values, 10_000.0))
    assert np.abs(spoiled[:-1] - scores).max() < 0.01 and spoiled[-1] > 1000
    assert (robust_scores(np.full(9, 3.0)) == 0).all()
    assert robust_scores(np.array([0.0] * 99 + [1.0]))[-1] > 5  # more than half are equal
