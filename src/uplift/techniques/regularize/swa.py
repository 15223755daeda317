"""Stochastic weight averaging: keeps the mean of the weights over the last part of the run, each with equal weight.

When: with a constant rate (``train.schedule: {use: constant}``), where the weights wander around a flat optimum.
When not: with schedules that decay to zero, where the last weights have settled already; beside ``ema`` (one of the two).
Paper: Izmailov et al. 2018, Averaging Weights Leads to Wider Optima and Better Generalization.
Cost: memory one copy of the trained weights; time one pass over them per step of the averaged part.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from uplift.core.values import Effect, Progress
from uplift.techniques.averaging import Averaging


class Swa(Averaging):
    """From ``1 - share`` of the run on, every ``every``-th update enters the mean; it is evaluated, reported and saved.

    Before that, the weights are evaluated as they are. The learning rate is the schedule's own; with `constant` or `wsd` it
    stays at its peak while weights are averaged.
    """

    use: Literal["swa"] = "swa"
    share: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Last part of the run whose weights are averaged (0: off)."""
    every: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """Updates between two snapshots."""

    off: ClassVar[Mapping[str, Any]] = {"share": 0.0}

    _inside: int = PrivateAttr(0)

    def move(self, averages: list[Tensor], weights: list[Tensor], progress: Progress) -> bool:
        """The running arithmetic mean, ``mean += (weights - mean) / n``."""
        if self.share == 0 or progress.fraction < 1.0 - self.share:
            return False
        self._inside += 1
        if (self._inside - 1) % self.every:
            return False
        torch._foreach_lerp_(averages, weights, 1.0 / (self._updates + 1))
        return True

    def state(self) -> dict[str, Any]:
        """The mean, its snapshots, and the updates since it began."""
        return {**super().state(), "inside": self._inside}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        super().load_state(state)
        self._inside = state["inside"]

    def effect(self) -> Effect:
        """Relative distance between the mean and the last weights; holds when at least two snapshots differ."""
        passed = self._updates >= 2 and self._distance > 0
        return Effect(self.use, "the kept weights are a mean", self._distance, passed, f"{self._updates} snapshots")
