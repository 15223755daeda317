"""How well a model does on the validation samples, how sure that is, and how sure the change since the best look is.

Shapes: S validation samples. A sample's tokens hang together, so errors are those of a mean over samples of unequal size
(the ratio estimator, Cochran 1977, chapter 6), never of independent tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from uplift.core.values import Batch
from uplift.learn.learner import Learner


def ratio_error(sums_S: Tensor, counts_S: Tensor) -> float:
    """Standard error of ``sum(sums) / sum(counts)``; 0 for fewer than two samples."""
    size = len(sums_S)
    if size < 2:
        return 0.0
    rest_S = sums_S - counts_S * (sums_S.sum() / counts_S.sum())
    return math.sqrt(float(rest_S.square().sum()) * size / (size - 1)) / float(counts_S.sum())


def look(learner: Learner, batches: Sequence[Batch], lowest: Sequence[float]) -> tuple[dict[str, float], list[float]]:
    """Metrics of the learner in eval mode, and each sample's summed loss.

    ``lowest``: those sums at the lowest mean so far ([] = none yet). ``validation_loss_se`` is the error of the mean,
    ``validation_loss_paired_se`` that of the difference to the lowest, on the same samples: usually several times smaller.
    """
    pairs = [learner.measure(batch) for batch in batches]
    sums_S, counts_S = (torch.cat(parts).cpu().double() for parts in zip(*pairs, strict=True))
    found = {
        "validation_loss": float(sums_S.sum() / counts_S.sum()),
        "validation_loss_se": ratio_error(sums_S, counts_S),
    }
    if len(lowest) == len(sums_S):
        before_S = torch.tensor(lowest, dtype=torch.float64)
        found["validation_loss_paired_se"] = ratio_error(sums_S - before_S, counts_S)
    return found, sums_S.tolist()
