"""How sure we are: intervals and paired tests, vectorised over resamples.

Shapes: R resamples, N items, S seeds, K distinct kinds of item. Resampling N items that fall into K kinds is the same as one
multinomial draw of the K counts, so counts (confusion matrices, paired outcomes) are resampled without touching items.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LEVEL = 0.95
CHUNK = 8_000_000
"""Numbers held at once while items are resampled (64 MB)."""


@dataclass(frozen=True)
class Interval:
    """A measured value with the ends of its confidence interval (95 % unless said) and the method's name."""

    value: float
    low: float
    high: float
    method: str = ""

    def excludes(self, value: float) -> bool:
        """Whether ``value`` lies outside the interval."""
        return not self.low <= value <= self.high


# -- intervals from replicates -----------------------------------------------------------------------------------------
def percentile_interval(value: float, replicates: Floats, level: float = LEVEL) -> Interval:
    """Middle ``level`` share of the bootstrap replicates (R,) (Efron 1979)."""
    finite = replicates[np.isfinite(replicates)]
    if len(finite) == 0:
        return Interval(value, math.nan, math.nan, "bootstrap percentile")
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), "bootstrap percentile")


def bca_interval(
    value: float,
    replicates: Floats,
    jackknife: Floats,
    multiplicity: Floats | None = None,
    level: float = LEVEL,
) -> Interval:
    """Bias-corrected and accelerated interval (Efron 1987).

    ``jackknife``: the statistic with one item left out; ``multiplicity``: how many items each of its entries stands for. Falls
    back to the percentile interval where the correction is undefined (all replicates equal, or on one side of the value).
    """
    finite = replicates[np.isfinite(replicates)]
    below = ((finite < value).sum() + 0.5 * (finite == value).sum()) / max(1, len(finite))
    if not 0 < below < 1 or np.ptp(finite) == 0:
        return percentile_interval(value, replicates, level)
    weight = np.ones_like(jackknife) if multiplicity is None else multiplicity
    deviation = np.average(jackknife, weights=weight) - jackknife
    spread = (weight * deviation**2).sum() ** 1.5
    acceleration = float((weight * deviation**3).sum() / (6 * spread)) if spread > 0 else 0.0
    normal = NormalDist()
    bias = normal.inv_cdf(float(below))
    ends = []
    for share in ((1 - level) / 2, (1 + level) / 2):
        z = bias + normal.inv_cdf(share)
        ends.append(normal.cdf(bias + z / (1 - acceleration * z)) if acceleration * z < 1 else share)
    low, high = np.quantile(finite, ends)
    return Interval(value, float(low), float(high), "bootstrap BCa")


def wilson_interval(successes: float, trials: int, level: float = LEVEL) -> Interval:
    """Interval of a rate that stays honest at 0 % and 100 % (Wilson 1927)."""
    if trials == 0:
        return Interval(math.nan, 0.0, 1.0, "Wilson")
    z, rate = NormalDist().inv_cdf((1 + level) / 2), successes / trials
    centre = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials**2))
    return Interval(rate, max(0.0, centre - half), min(1.0, centre + half), "Wilson")


# -- bootstrap over items ----------------------------------------------------------------------------------------------
def item_weights(items: int, resamples: int, rng: np.random.Generator) -> Iterator[Floats]:
    """How often each item is drawn, in chunks (r, N) that together have R rows, each row summing to N."""
    rows = max(1, CHUNK // max(1, items))
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = rng.integers(0, items, size=(size, items)) + np.arange(size)[:, None] * items
        yield (np.bincount(drawn.ravel(), minlength=size * items).reshape(size, items).astype(np.float64))


def bootstrap_mean(
    values: Floats,
    weights: Floats | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """BCa interval of sum(values) / sum(weights) over items (N,); without ``weights`` the plain mean.

    ``weights`` makes it a ratio of sums (nats over tokens, nats over bytes) in which whole items are resampled.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 0:
        return Interval(math.nan, math.nan, math.nan, "bootstrap BCa")
    units = np.ones_like(values) if weights is None else np.asarray(weights, dtype=np.float64)
    both = np.stack([values, units], axis=1)
    rng = np.random.default_rng(seed)
    sums = np.concatenate([drawn @ both for drawn in item_weights(len(values), resamples, rng)])
    left_out = both.sum(0) - both
    with np.errstate(divide="ignore", invalid="ignore"):
        replicates, jackknife = sums[:, 0] / sums[:, 1], left_out[:, 0] / left_out[:, 1]
    if not np.isfinite(jackknife).all():
        return percentile_interval(float(values.sum() / units.sum()), replicates)
    return bca_interval(float(values.sum() / units.sum()), replicates, jackknife)


def bootstrap_counts(
    counts: NDArray[np.generic],
    metric: Callable[[Floats], Floats],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """BCa interval of ``metric(counts)`` when items are resampled; ``metric`` maps (..., *counts.shape) to (...)."""
    shape, flat = counts.shape, np.asarray(counts, dtype=np.float64).ravel()
    total = int(flat.sum())
    if total == 0:
        return Interval(math.nan, math.nan, math.nan, "bootstrap BCa")
    drawn = np.random.default_rng(seed).multinomial(total, flat / total, size=resamples)
    replicates = metric(drawn.reshape(resamples, *shape).astype(np.float64))
    kinds = np.flatnonzero(flat)
    left_out = flat - np.eye(len(flat))[kinds]
    jackknife = metric(left_out.reshape(len(kinds), *shape))
    return bca_interval(float(metric(flat.reshape(shape))), replicates, jackknife, flat[kinds])


def _paired_kinds(columns: NDArray[np.int64]) -> tuple[NDArray[np.int64], Floats]:
    """Distinct rows (K, k) of per-item outcomes (N, k) and how many items have each."""
    kinds, counts = np.unique(columns, axis=0, return_counts=True)
    return kinds, counts.astype(np.float64)


def _pair_confusions(kinds: NDArray[np.int64], counts: Floats, classes: int) -> tuple[Floats, Floats]:
    """Confusion counts (..., C, C) of two systems from counts (..., K) of (truth, first, second) kinds."""
    square = classes * classes
    to_first, to_second = np.zeros((len(kinds), square)), np.zeros((len(kinds), square))
    rows = np.arange(len(kinds))
    to_first[rows, kinds[:, 0] * classes + kinds[:, 1]] = 1
    to_second[rows, kinds[:, 0] * classes + kinds[:, 2]] = 1
    shape = (*counts.shape[:-1], classes, classes)
    return (counts @ to_first).reshape(shape), (counts @ to_second).reshape(shape)


@dataclass(frozen=True)
class PairedOutcomes:
    """Two systems on the same items: true class and both predictions, each (N,)."""

    truth: NDArray[np.int64]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    classes: int

    def kinds(self) -> tuple[NDArray[np.int64], Floats]:
        """Distinct (truth, first, second) rows (K, 3) and their counts (K,)."""
        return _paired_kinds(np.stack([self.truth, self.first, self.second], axis=1).astype(np.int64))


def bootstrap_difference(
    paired: PairedOutcomes,
    metric: Callable[[Floats], Floats],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Interval of metric(first) - metric(second) over resampled items, both systems on the same draw (paired bootstrap)."""
    kinds, counts = paired.kinds()

    def difference(drawn: Floats) -> Floats:
        one, other = _pair_confusions(kinds, drawn, paired.classes)
        return metric(one) - metric(other)

    return bootstrap_counts(counts, difference, resamples=resamples, seed=seed)


# -- seeds and items ---------------------------------------------------------------------------------------------------
def _resample_seeds(scores: Floats, rng: np.random.Generator) -> Floats:
    """Means (R,) over seeds drawn with replacement from ``scores`` (R, S).

    A bootstrap mean of S values varies (S-1)/S times too little, which matters for the usual 2 to 5 seeds: deviations from the
    plain mean are stretched by the root of S/(S-1). With one seed nothing is drawn.
    """
    seeds = scores.shape[1]
    plain = scores.mean(1)
    if seeds == 1:
        return plain
    chosen = np.take_along_axis(scores, rng.integers(0, seeds, size=scores.shape), axis=1).mean(1)
    return plain + math.sqrt(seeds / (seeds - 1)) * (chosen - plain)


def hierarchical_counts(
    cells: NDArray[np.int64],
    shape: tuple[int, ...],
    metric: Callable[[Floats], Floats],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Floats:
    """Replicates (R,) of the mean over seeds of ``metric``, resampling seeds and items (crossed two-way bootstrap).

    ``cells`` (S, N): the index of each item's outcome in a count array of ``shape``, per seed. All seeds see the same drawn
    items. With one seed only items are resampled, and the interval then says nothing about other seeds.
    """
    seeds, items = cells.shape
    size, rng = int(np.prod(shape)), np.random.default_rng(seed)
    marks = np.zeros((seeds, items, size))
    np.put_along_axis(marks, cells[:, :, None], 1.0, axis=2)
    replicates = []
    for drawn in item_weights(items, resamples, rng):
        scores = np.stack(
            [metric((drawn @ mark).reshape(len(drawn), *shape)) for mark in marks],
            axis=1,
        )
        replicates.append(_resample_seeds(scores, rng))
    return np.concatenate(replicates)


def hierarchical_ratios(values: Floats, units: Floats, *, resamples: int = 2000, seed: int = 0) -> Floats:
    """Replicates (R,) of the mean over seeds of sum(values) / sum(units), both (S, N), resampling seeds and items.

    The draws depend only on (S, N, R, ``seed``), here and in ``hierarchical_counts``: subtracting the replicates of two systems
    made with the same numbers is the paired bootstrap of their difference.
    """
    rng, replicates = np.random.default_rng(seed), []
    for drawn in item_weights(values.shape[1], resamples, rng):
        scores = (drawn @ values.T) / (drawn @ units.T)
        replicates.append(_resample_seeds(scores, rng))
    return np.concatenate(replicates)


# -- tests -------------------------------------------------------------------------------------------------------------
def _binomial_log_pmf(k: NDArray[np.int64], n: int) -> Floats:
    """ln P(X = k) for X ~ Binomial(n, 1/2)."""
    factorial = np.cumsum(np.log(np.maximum(1, np.arange(n + 1))))
    return factorial[n] - factorial[k] - factorial[n - k] - n * math.log(2)


def sign_test(positive: int, negative: int, mid_p: bool = False) -> float:
    """Two-sided exact p of ``positive`` against ``negative`` signs under fair coin flips; ties left out beforehand.

    ``mid_p`` counts the observed outcome half: close to nominal error where the exact test is conservative.
    """
    total, fewer = positive + negative, min(positive, negative)
    if positive == negative:
        return 1.0
    mass = np.exp(_binomial_log_pmf(np.arange(fewer + 1), total))
    p = 2 * float(mass.sum()) - (float(mass[-1]) if mid_p else 0.0)
    return min(1.0, p)


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_], mid_p: bool = False) -> float:
    """Exact McNemar p: do two systems with per-item correctness (N,) differ in accuracy? (McNemar 1947.)

    Only items on which exactly one is right count. ``mid_p`` as in ``sign_test`` (Fagerland, Lydersen, Laake 2013).
    """
    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    return sign_test(int((first & ~second).sum()), int((~first & second).sum()), mid_p)


def permutation_test(differences: Floats, *, resamples: int = 9999, seed: int = 0) -> float:
    """Two-sided p that the mean of paired differences (N,) is 0: signs flipped at random (Fisher 1935)."""
    differences = np.asarray(differences, dtype=np.float64)
    observed = abs(differences.sum())
    if observed == 0:
        return 1.0
    kinds, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    rng, hits = np.random.default_rng(seed), 0
    rows = max(1, CHUNK // len(kinds))
    for start in range(0, resamples, rows):
        positive = rng.binomial(counts, 0.5, size=(min(rows, resamples - start), len(counts)))
        sums = np.abs((2 * positive - counts) @ kinds)
        hits += int((sums >= observed * (1 - 1e-12)).sum())
    return (hits + 1) / (resamples + 1)


def permutation_difference(
    paired: PairedOutcomes,
    metric: Callable[[Floats], Floats],
    *,
    resamples: int = 9999,
    seed: int = 0,
) -> float:
    """Two-sided p that two systems have equal ``metric``: predictions swapped at random item by item (Noreen 1989)."""
    kinds, counts = paired.kinds()
    one, other = _pair_confusions(kinds, counts, paired.classes)
    observed = abs(float(metric(one) - metric(other)))
    if observed == 0:
        return 1.0
    swapped = np.random.default_rng(seed).binomial(counts.astype(np.int64), 0.5, size=(resamples, len(counts)))
    kept_one, kept_other = _pair_confusions(kinds, counts - swapped, paired.classes)
    moved_one, moved_other = _pair_confusions(kinds, swapped.astype(np.float64), paired.classes)
    drawn = np.abs(metric(kept_one + moved_other) - metric(kept_other + moved_one))
    return (int((drawn >= observed * (1 - 1e-9)).sum()) + 1) / (resamples + 1)


def holm(p_values: list[float]) -> list[float]:
    """Adjusted p-values in the given order; comparing them with 0.05 keeps the family-wise error below 5 % (Holm 1979)."""
    count, running = len(p_values), 0.0
    adjusted = [1.0] * count
    for rank, index in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def detectable_difference(items: int, discordant: float, power: float = 0.8, level: float = LEVEL) -> float:
    """Smallest accuracy difference that N paired items show with this power (normal approximation).

    ``discordant``: share of items on which exactly one of the two systems is right.
    """
    if items == 0:
        return math.inf
    normal = NormalDist()
    z = normal.inv_cdf((1 + level) / 2) + normal.inv_cdf(power)
    return z * math.sqrt(max(discordant, 1 / items) / items)
