"""The order of training samples as a pure function of (seed, epoch): nothing to save, resumable as an integer position.

Weights act inside an epoch without dropping anything. An epoch is a race: a sample has an exponential distance to go, runs at
the speed of its weight, and is drawn when it arrives; in each round speeds are asked anew. At every moment that is weighted
sampling without replacement (Efraimidis and Spirakis 2006, "Weighted random sampling with a reservoir"); samples that start to
run late do not arrive in a burst; and equal weights give exactly the order of no weights, a plain permutation.

Versions of a row can take turns: every epoch shows one of them, the next epoch the next one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from uplift.core.values import Sample, derive_seed

ROUNDS = 16
"""Times per epoch that weights are asked anew."""
TURNS = "turns"
"""Key of ``Sample.extras``: the ``row_key`` of the row with which a version of it takes turns."""


def spread(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` positions out of ``count``, at even distances from the first on."""
    return sorted({place * count // min(count, wanted) for place in range(min(count, wanted))}) if count else []


def row_key(sample: Sample) -> tuple[str, int]:
    """What tells a row from others, equal ones included."""
    return sample.id, sample.extras.get("occurrence", 0)


class Order:
    """Training order over ``samples``; ``weight(sample, fraction)`` says how much to draw a sample at a point of the run.

    Weight 0 means later: every epoch visits every sample exactly once, and of versions that take turns one. The first epoch
    begins with any of them, so that each epoch shows as many first versions, second ones and so on.
    """

    def __init__(self, samples: Sequence[Sample], seed: int, weight: Callable[[Sample, float], float] | None = None) -> None:
        self._samples, self._seed, self._weight = samples, seed, weight
        self._hashes = np.array([_sample_hash(sample) for sample in samples], dtype=np.uint64)
        self._versions, begins = by_row(samples)
        self._begins, self._counts = begins[:-1], np.diff(begins)
        key = _mix(np.array([derive_seed("turns", seed)], dtype=np.uint64))
        self._starts = _mix(self._hashes[self._versions[self._begins]] ^ key)

    def __len__(self) -> int:
        """Samples of an epoch."""
        return len(self._begins)

    def shown(self, epoch: int) -> np.ndarray:
        """Indices of the samples of an epoch, in file order of their rows."""
        turn = (self._starts + np.uint64(epoch)) % self._counts.astype(np.uint64)
        return self._versions[self._begins + turn.astype(np.int64)]

    def mean_epoch(self, values: Sequence[int]) -> int:
        """What a value of each sample adds up to in an epoch, on average over epochs."""
        if not len(self):
            return 0
        sums = np.add.reduceat(np.array(values, dtype=np.int64)[self._versions], self._begins)
        return round(float((sums / self._counts).sum()))

    def epoch(self, epoch: int, fraction_at: Callable[[int], float] = lambda position: 0.0) -> list[int]:
        """Sample indices of one epoch in training order.

        ``fraction_at(position)`` is the progress of the run, 0 to 1, when ``position`` samples of this epoch are done.
        Raises ValueError when a weight is negative or not finite.
        """
        draws, left = self._exponentials(epoch), self.shown(epoch)
        if self._weight is None:
            return left[np.argsort(draws[left], kind="stable")].tolist()
        distances = draws.copy()
        order: list[int] = []
        for round_ in range(ROUNDS):
            quota = len(self) * (round_ + 1) // ROUNDS - len(order)
            if quota == 0:
                continue
            speeds = _speeds(self._weights(left, fraction_at(len(order))))
            arrivals = np.full(len(left), np.inf)
            np.divide(distances[left], speeds, out=arrivals, where=speeds > 0)
            ranked = np.lexsort((draws[left], arrivals))
            drawn, kept = ranked[:quota], np.sort(ranked[quota:])
            last = arrivals[drawn[-1]]
            if np.isfinite(last):
                distances[left[kept]] = np.maximum(distances[left[kept]] - speeds[kept] * last, 0.0)
            order += left[drawn].tolist()
            left = left[kept]
        return order

    def _exponentials(self, epoch: int) -> np.ndarray:
        key = _mix(np.array([derive_seed("order", self._seed, epoch)], dtype=np.uint64))
        bits = _mix(self._hashes ^ key)
        return -np.log(((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53)

    def _weights(self, indices: np.ndarray, fraction: float) -> np.ndarray:
        assert self._weight is not None
        weights = np.array([self._weight(self._samples[index], fraction) for index in indices.tolist()], dtype=np.float64)
        if not np.isfinite(weights).all() or (weights < 0).any():
            raise ValueError("sample weights must be finite and not negative")
        return weights


def by_row(samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the samples, the versions of a row one after the other; and where each row begins, with the end behind."""
    shared = {sample.extras[TURNS] for sample in samples if TURNS in sample.extras}
    if not shared:
        return np.arange(len(samples)), np.arange(len(samples) + 1)
    rows: dict[object, list[int]] = {}
    for index, sample in enumerate(samples):
        key = sample.extras.get(TURNS) or row_key(sample)
        rows.setdefault(key if key in shared else index, []).append(index)
    return np.array([index for row in rows.values() for index in row]), np.cumsum([0, *map(len, rows.values())])


def _speeds(weights: np.ndarray) -> np.ndarray:
    """Weights relative to the largest: equal ones become exactly 1.0, so that they leave the distances bit-equal."""
    top = weights.max()
    return weights / top if top > 0 else np.ones_like(weights)


def _sample_hash(sample: Sample) -> int:
    """64 bits per sample; equal samples are told apart by their occurrence number."""
    text = f"{sample.id}\x1f{sample.extras.get('occurrence', 0)}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every input bit changes every output bit."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
