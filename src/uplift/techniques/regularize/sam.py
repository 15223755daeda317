"""SAM: takes the gradient where the loss nearby is highest, so that training ends in a flat minimum.

Whole batch: the climb follows the gradient of the whole optimizer step, accumulated over micro-batches and processes. Both
gradients see the same dropout.

When: full fine-tuning or LoRA on few rows, where a flat minimum generalises better; noisy labels.
When not: when time is short (a step takes twice as long) or rows are plenty; with weights kept in bfloat16.
Paper: Foret et al. 2021, Sharpness-Aware Minimization; Kwon et al. 2021, ASAM; Bahri, Mobahi and Tay 2022 for language models.
Cost: memory one copy of the trained weights; time 2 of a plain step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from uplift.core.capability import Capabilities
from uplift.core.technique import Parameters, Technique
from uplift.core.values import Batch, Effect, Pass, Progress, Terms
from uplift.techniques.fingerprint import checksums, differing, total_norm

TOLERANCE = 0.01
ETA = 0.01
"""Added to every |w| by ASAM, so that weights near zero move too."""


def unit_of(weight: Tensor, adaptive: bool) -> Tensor:
    """Unit of length of each weight: ASAM's ``|w| + eta``; 1 for SAM."""
    return weight.detach().abs() + ETA if adaptive else weight.new_ones(())


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


class Sam(Technique):
    """Climbs to ``w + e`` with ``e = rho * g / ||g||``, takes the gradient there, and goes back before the update.

    ASAM measures the climb relative to each weight: ``e = rho * T^2 g / ||T g||`` with ``T = |w| + 0.01``.
    """

    use: Literal["sam"] = "sam"
    rho: Annotated[float, Field(ge=0, le=100)] = 0.05
    """Length of the climb (0: off; 0.05 to 0.15 is usual, ten times that when `adaptive`)."""
    adaptive: bool = False
    """ASAM: in proportion to each weight, so that rescaled layers climb alike."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        needs=frozenset({"training"}), exclusive=frozenset({"update"}), passes=1, cost=3.0
    )
    off: ClassVar[Mapping[str, Any]] = {"rho": 0.0}

    _losses: list[Any] = PrivateAttr(default_factory=lambda: [0.0, 0.0])
    _steps: int = PrivateAttr(0)
    _climbed: float = PrivateAttr(0.0)
    _rise: float = PrivateAttr(0.0)
    _moved: list[str] = PrivateAttr(default_factory=list)

    def terms(self, forward: Pass, batch: Batch) -> Terms:
        """Nothing is added; the losses of both passes are watched."""
        self._losses = [self._losses[0] + forward.losses.cross_entropy.detach(), self._losses[1] + forward.count]
        return {}

    def _loss(self) -> float:
        """Mean loss since it was last asked for."""
        (total, count), self._losses = self._losses, [0.0, 0.0]
        return float(total) / max(float(count), 1e-12)

    def update(self, parameters: Parameters, progress: Progress, backward: Callable[[], None]) -> None:
        """Climb, take the gradient, go back. A gradient that is zero or not finite is left as it is."""
        before = self._loss()
        moving = {name: parameter for name, parameter in parameters.items() if parameter.grad is not None}
        norm = total_norm(_gradient(p) * unit_of(p, self.adaptive) for p in moving.values()) if self.rho else 0.0
        if norm == 0 or not math.isfinite(norm):
            return
        proof = {} if self._steps else checksums(moving)
        kept = {name: parameter.detach().clone() for name, parameter in moving.items()}
        self._climbed += self._climb(moving, kept, norm)
        try:
            backward()
        finally:
            with torch.no_grad():
                for name, parameter in moving.items():
                    parameter.copy_(kept[name])
        self._moved += differing(proof, moving)
        rise = self._loss() - before
        self._rise += rise if math.isfinite(rise) else 0.0
        self._steps += 1

    @torch.no_grad()
    def _climb(self, moving: Parameters, kept: Mapping[str, Tensor], norm: float) -> float:
        """Move the weights; returns how far they went, in the unit of ``rho``."""
        squares = []
        for name, parameter in moving.items():
            unit = unit_of(kept[name], self.adaptive)
            parameter.add_(_gradient(parameter) * unit * unit, alpha=self.rho / norm)
            squares.append(((parameter - kept[name]) / unit).float().pow(2).sum())
        return float(torch.stack(squares).sum().sqrt())

    def state(self) -> dict[str, Any]:
        """The sums behind the proof."""
        return {"steps": self._steps, "climbed": self._climbed, "rise": self._rise, "moved": list(self._moved)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the sums."""
        self._steps, self._climbed, self._rise = state["steps"], state["climbed"], state["rise"]
        self._moved = list(state["moved"])

    def effect(self) -> Effect:
        """Mean rise of the loss by the climb, the sharpness; holds for climbs of length ``rho`` that left no trace."""
        steps = max(1, self._steps)
        rise, length = self._rise / steps, self._climbed / steps
        right = abs(length - self.rho) <= TOLERANCE * self.rho and not self._moved
        trace = f"not restored: {', '.join(self._moved[:3])}" if self._moved else "weights restored bit for bit"
        detail = f"{self._steps} climbs of length {length:.4g}; {trace}"
        return Effect(
            self.use, "the gradient was taken where the loss is higher", rise, self._steps > 0 and rise > 0 and right, detail
        )
