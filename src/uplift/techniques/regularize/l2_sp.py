"""L2-SP: pulls every trained pretrained weight back towards the value it started from.

When: full fine-tuning on little data, or when what the model already knows must not be forgotten.
When not: with adapters (the base does not move there); when the target is far from what the model was trained on.
Paper: Li, Grandvalet and Davoine 2018, Explicit Inductive Bias for Transfer Learning with Convolutional Networks.
Cost: memory one copy of the trained weights; time about one read of them per step.
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
from uplift.techniques.selection import class_head


def pull(weight: Tensor, start: Tensor, strength: float) -> Tensor:
    """Gradient of ``strength / 2 * ||weight - start||^2``: zero at the start."""
    return (weight - start) * strength


class L2Sp(Technique):
    """Adds ``strength * (w - w0)`` to the gradient; a new classification head has no w0 worth keeping and is left alone."""

    use: Literal["l2_sp"] = "l2_sp"
    strength: Annotated[float, Field(ge=0, le=100)] = 0.01
    """Pull per unit of distance (0: off; 0.001 to 0.1 is usual)."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        needs=frozenset({"training"}),
        mutates=frozenset({"gradients"}),
        conflicts={
            "adapter": (
                "an adapter leaves the pretrained weights where they are, so there is nothing to pull",
                "remove one of the two",
            ),
            "head_only": ("only a new head trains, which has no pretrained starting point", "remove one of the two"),
        },
    )
    off: ClassVar[Mapping[str, Any]] = {"strength": 0.0}

    _start: dict[str, Tensor] = PrivateAttr(default_factory=dict)
    _parameters: Parameters = PrivateAttr(default_factory=dict)
    _pulls: int = PrivateAttr(0)
    _distance: float = PrivateAttr(0.0)

    def begin(self, model: Any, parameters: Parameters) -> None:
        """Keep a copy of where the pretrained weights start."""
        if self.strength == 0:
            return
        new = class_head(parameters)
        self._parameters = {name: parameter for name, parameter in parameters.items() if name not in new}
        self._start = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def gradients(self, parameters: Parameters, progress: Progress) -> None:
        """Add the pull to each gradient."""
        for name, start in self._start.items():
            parameter = parameters[name]
            if parameter.grad is not None:
                parameter.grad.add_(pull(parameter, start, self.strength))
        self._pulls += bool(self._start)

    def finish(self, model: Any) -> Any:
        """Measure how far the weights went, relative to their size."""
        moved = total_norm(self._parameters[name].detach() - start for name, start in self._start.items())
        self._distance = moved / max(total_norm(self._start.values()), 1e-30)
        return model

    def state(self) -> dict[str, Any]:
        """The count of pulls; the starting point is the base model itself and is read again from it."""
        return {"pulls": self._pulls}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the count."""
        self._pulls = state["pulls"]

    def effect(self) -> Effect:
        """Relative distance to the start; holds when weights moved and were pulled back at least once (from step 2 on)."""
        passed = self._pulls >= 2 and self._distance > 0
        detail = f"pulled at {self._pulls} steps; relative distance to the start {self._distance:.3g}"
        return Effect(self.use, "the weights were pulled towards their start", self._distance, passed, detail)
