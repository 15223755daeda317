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
from pydantic import Field, PrivateAttr
from torch import Tensor

from uplift.core.capability import Capabilities
from uplift.core.technique import Parameters, Technique
from uplift.core.values import Effect, Progress
from uplift.techniques.fingerprint import total_norm

PROBES = 8
"""So many tensors are looked at to see whether somebody replaced the weights after the last update."""


def effective_decay(decay: float, updates: int) -> float:
    """``min(decay, (1 + t) / (10 + t))`` after ``t`` updates: early on the average forgets its start fast."""
    return min(decay, (1 + updates) / (10 + updates))


class Ema(Technique):
    """Keeps ``average = d * average + (1 - d) * weights``; validation, the report and the saved model use the average.

    The average starts at the initial weights and ``d`` grows with the number of updates (see ``effective_decay``), so no
    bias correction is needed at the end. When early stopping restored a best step, that step's average is kept.
    """

    use: Literal["ema"] = "ema"
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """How much of the average stays at each step (0: off, the average is the current weights)."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        needs=frozenset({"training"}), gives=frozenset({"averaged_weights"}), exclusive=frozenset({"evaluated_weights"})
    )
    off: ClassVar[Mapping[str, Any]] = {"decay": 0.0}

    _parameters: Parameters = PrivateAttr(default_factory=dict)
    _average: dict[str, Tensor] = PrivateAttr(default_factory=dict)
    _updates: int = PrivateAttr(0)
    _last: list[float] = PrivateAttr(default_factory=list)
    _distance: float = PrivateAttr(0.0)

    def begin(self, model: Any, parameters: Parameters) -> None:
        """Start the average at the initial weights."""
        self._parameters = dict(parameters)
        self._average = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self._last = self._probe()

    def _probe(self) -> list[float]:
        some = list(self._parameters.values())[:PROBES]
        return torch.stack([parameter.detach().reshape(-1)[0].float() for parameter in some]).tolist() if some else []

    @torch.no_grad()
    def after_update(self, parameters: Parameters, progress: Progress, lr: float) -> None:
        """Move the average towards the new weights."""
        decay = effective_decay(self.decay, self._updates)
        current = [parameters[name].detach() for name in self._average]
        torch._foreach_lerp_(list(self._average.values()), current, 1.0 - decay)
        self._updates += 1
        self._last = self._probe()

    def averaged(self, parameters: Parameters) -> Mapping[str, Tensor] | None:
        """The average, once there is one."""
        return self._average if self._updates else None

    @torch.no_grad()
    def finish(self, model: Any) -> Any:
        """Swap the average in, unless the weights are a restored best step (saved as the average of that step)."""
        if self._probe() == self._last:
            between = (self._parameters[name].detach() - value for name, value in self._average.items())
            self._distance = total_norm(between) / max(total_norm(self._average.values()), 1e-30)
            for name, value in self._average.items():
                self._parameters[name].copy_(value)
        else:
            moved = (self._average[name] - parameter.detach() for name, parameter in self._parameters.items())
            self._distance = total_norm(moved) / max(total_norm(self._average.values()), 1e-30)
        return model

    def state(self) -> dict[str, Any]:
        """The average and how many updates are in it."""
        return {"average": dict(self._average), "updates": self._updates, "last": list(self._last)}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the average onto the devices of the weights."""
        for name, value in state["average"].items():
            self._average[name].copy_(value)
        self._updates, self._last = state["updates"], list(state["last"])

    def effect(self) -> Effect:
        """Relative distance between the average and the last weights; holds when they differ."""
        detail = f"{self._updates} updates, effective decay {effective_decay(self.decay, max(0, self._updates - 1)):.3g}"
        return Effect(
            self.use, "the kept weights are an average", self._distance, self._updates > 0 and self._distance > 0, detail
        )
