"""Techniques that evaluate and keep an average of the weights in place of the last ones: what they share.

The average may hold weights that no longer train, or came to train during the run; each is taken up when it is first seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from pydantic import PrivateAttr
from torch import Tensor

from uplift.core.capability import Capabilities
from uplift.core.technique import Parameters, Technique
from uplift.core.values import Progress
from uplift.techniques.fingerprint import total_norm

PROBES = 8
"""So many tensors are looked at to see whether somebody replaced the weights after the last update."""


class Averaging(Technique):
    """Base of techniques that own the evaluated weights; a subclass says in ``move`` how an update enters the average."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        needs=frozenset({"training"}), gives=frozenset({"averaged_weights"}), exclusive=frozenset({"evaluated_weights"})
    )

    _named: Parameters = PrivateAttr(default_factory=dict)
    _average: dict[str, Tensor] = PrivateAttr(default_factory=dict)
    _updates: int = PrivateAttr(0)
    _last: list[float] = PrivateAttr(default_factory=list)
    _distance: float = PrivateAttr(0.0)

    def move(self, averages: list[Tensor], weights: list[Tensor], progress: Progress) -> bool:
        """Change the averages in place, given the weights after an update; False: this update does not count."""
        raise NotImplementedError

    def begin(self, model: Any, parameters: Parameters) -> None:
        """Start the average at the initial weights."""
        self._named = model.parameters_by_name()
        self._take_up(parameters)
        self._last = self._probe()

    def _take_up(self, names: Iterable[str]) -> None:
        self._average |= {name: self._named[name].detach().clone() for name in names if name not in self._average}

    def _probe(self) -> list[float]:
        some = [self._named[name] for name in sorted(self._average)[:PROBES]]
        return torch.stack([parameter.detach().reshape(-1)[0].float() for parameter in some]).tolist() if some else []

    @torch.no_grad()
    def after_update(self, parameters: Parameters, progress: Progress, lr: float) -> None:
        """Let the new weights into the average."""
        self._take_up(parameters)
        weights = [self._named[name].detach() for name in self._average]
        self._updates += self.move(list(self._average.values()), weights, progress)
        self._last = self._probe()

    def averaged(self, parameters: Parameters) -> Mapping[str, Tensor] | None:
        """The average, once there is one."""
        return self._average if self._updates else None

    @torch.no_grad()
    def finish(self, model: Any) -> Any:
        """Swap the average in, unless the weights are a restored best step (saved as the average of that step)."""
        if not self._updates:
            return model
        replaced = self._probe() != self._last
        between = (self._named[name].detach() - value for name, value in self._average.items())
        self._distance = total_norm(between) / max(total_norm(self._average.values()), 1e-30)
        if not replaced:
            for name, value in self._average.items():
                self._named[name].copy_(value)
        return model

    def state(self) -> dict[str, Any]:
        """The average and how many updates are in it."""
        return {"average": dict(self._average), "updates": self._updates, "last": list(self._last)}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the average onto the devices of the weights."""
        self._take_up(state["average"])
        for name, value in state["average"].items():
            self._average[name].copy_(value)
        self._updates, self._last = state["updates"], list(state["last"])
