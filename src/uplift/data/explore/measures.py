"""Numbers over rows: percentiles, histograms with logarithmic bins, rows as they are shown."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from uplift.data.explore.findings import SHOWN, RowShown, Spread
from uplift.data.explore.sample import TextRow

BINS = 36
Integers = NDArray[np.int64]


def spread_of(values: Sequence[int] | NDArray[np.integer]) -> Spread:
    """How whole numbers from 0 are spread. No values count as a single 0."""
    numbers = np.asarray(values if len(values) else [0], dtype=np.int64)
    low, *middle, high = (float(part) for part in np.percentile(numbers, [0, 5, 25, 50, 75, 95, 99, 100]))
    edges = log_edges(int(low), int(high))
    counts, _ = np.histogram(numbers, bins=edges)
    names = ("p5", "p25", "p50", "p75", "p95", "p99")
    return Spread(
        total=int(numbers.sum()) if len(values) else 0,
        mean=round(float(numbers.mean()), 3),
        least=int(low),
        most=int(high),
        edges=edges,
        counts=[int(count) for count in counts],
        **{name: round(value, 2) for name, value in zip(names, middle, strict=True)},
    )


def log_edges(low: int, high: int, bins: int = BINS) -> list[float]:
    """Edges between whole numbers, each bin the same factor wide (but at least 1), from ``low`` to ``high``."""
    start, end = low - 0.5, high + 0.5
    edges = [start]
    factor = (max(end, 1.0) / max(start, 1.0)) ** (1 / bins)
    while edges[-1] < end:
        edges.append(min(end, max(edges[-1] + 1, math.floor(max(edges[-1], 1.0) * factor) + 0.5)))
    return edges


def shown(row: TextRow, note: str = "", text: str | None = None) -> RowShown:
    """A row to look at; ``text`` in place of its own."""
    content = row.text if text is None else text
    return RowShown(place=str(row.origin), text=cut(content), characters=len(row.text), label=row.label, note=note)


def cut(text: str, most: int = SHOWN) -> str:
    """The beginning of a text."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def robust_scores(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance from the median in median absolute deviations scaled to standard deviations; 0 where nothing deviates."""
    median = np.median(values)
    scale = 1.4826 * np.median(np.abs(values - median))
    if scale == 0:
        scale = 1.2533 * np.abs(values - median).mean()  # more than half are equal: the mean deviation instead
    return (values - median) / scale if scale else np.zeros_like(values)
