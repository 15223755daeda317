"""Exponential moving average of the weights: evaluates and keeps a smoothed copy instead of the last step.

When: noisy training (small batches, high or constant learning rate); costs nothing in quality where it does not help.
When not: very short runs, where the average lags behind; with schedules that decay to zero it changes little.
Paper: Polyak and Juditsky 1992; Tarvainen and Valpola 2017, Mean Teachers; Morales-Brotons et al. 2024 for deep networks.
Cost: memory one copy of the trained weights; time one pass over them per step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from uplift.core.values import Effect, Progress
from uplift.techniques.averaging import Averaging


def effective_decay(decay: float, updates: int) -> float:
    """``min(decay, (1 + t) / (10 + t))`` after ``t`` updates: early on the average forgets its start fast."""
    return min(decay, (1 + updates) / (10 + updates))


class Ema(Averaging):
    """Keeps ``average = d * average + (1 - d) * weights``; validation, the report and the saved model use the average.

    The average starts at the initial weights and ``d`` grows with the number of updates (see ``effective_decay``), so no
    bias correction is needed at the end. When early stopping restored a best step, that step's average is kept.
    """

    use: Literal["ema"] = "ema"
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """How much of the average stays at each step (0: off, the average is the current weights)."""

    off: ClassVar[Mapping[str, Any]] = {"decay": 0.0}

    def move(self, averages: list[Tensor], weights: list[Tensor], progress: Progress) -> bool:
        """Move the average towards the new weights."""
        torch._foreach_lerp_(averages, weights, 1.0 - effective_decay(self.decay, self._updates))
        return True

    def effect(self) -> Effect:
        """Relative distance between the average and the last weights; holds when they differ."""
        detail = f"{self._updates} updates, effective decay {effective_decay(self.decay, max(0, self._updates - 1)):.3g}"
        return Effect(
            self.use, "the kept weights are an average", self._distance, self._updates > 0 and self._distance > 0, detail
        )
