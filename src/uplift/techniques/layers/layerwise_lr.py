"""Layer-wise learning rates: the top trains at the full rate, each layer below at a smaller one.

When: full fine-tuning of a pretrained model on little data; lower layers hold general knowledge and should move less.
When not: when the input itself is new to the model (then the lower layers must move).
Paper: Howard and Ruder 2018, ULMFiT (discriminative fine-tuning); Clark et al. 2020, ELECTRA.
Cost: memory none; time none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from uplift.core.capability import Capabilities
from uplift.core.technique import Parameters, Technique
from uplift.core.values import Effect, Group, Progress

TOLERANCE = 0.25
"""Largest relative difference between a depth's first update and its rate (AdamW's first update is the rate, nearly)."""


def rate_at(depth: int, layers: int, decay: float) -> float:
    """Multiplier of the rate at ``depth`` (0 embeddings, 1..layers, layers + 1 the head): ``decay ** (layers + 1 - depth)``."""
    return float(decay ** (layers + 1 - depth))


class LayerwiseLr(Technique):
    """Multiplies the learning rate by ``decay`` for every layer downwards."""

    use: Literal["layerwise_lr"] = "layerwise_lr"
    decay: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Factor per layer (1: off; 0.65 to 0.95 is usual; deep models want it closer to 1)."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        needs=frozenset({"training"}),
        mutates=frozenset({"rates"}),
        conflicts={
            "head_only": ("only the head trains, so there is one rate", "remove one of the two"),
            "head_first": ("its first phase trains the head alone, at one rate", "use `gradual_unfreezing` in its place"),
            "chosen_blocks": ("so few blocks train that there is hardly more than one rate", "remove one of the two"),
            "new_blocks": ("only the new blocks train, and they have nothing yet to protect", "remove one of the two"),
        },
    )
    off: ClassVar[Mapping[str, Any]] = {"decay": 1.0}

    _expected: dict[int, float] = PrivateAttr(default_factory=dict)
    _depths: dict[str, int] = PrivateAttr(default_factory=dict)
    _before: dict[str, Tensor] = PrivateAttr(default_factory=dict)
    _measured: dict[int, float] = PrivateAttr(default_factory=dict)

    def groups(self, model: Any) -> list[Group]:
        """One rule per depth."""
        by_depth: dict[int, set[str]] = {}
        for name in model.parameters_by_name():
            by_depth.setdefault(model.depth(name), set()).add(name)
        rate = {depth: rate_at(depth, len(model.layers), self.decay) for depth in sorted(by_depth)}
        return [Group(frozenset(by_depth[depth]), lr_multiplier=rate[depth]) for depth in rate]

    def begin(self, model: Any, parameters: Parameters) -> None:
        """Remember the rate of each depth that trains, and which tensors will show it (vectors, if the depth has any)."""
        depths = {name: model.depth(name) for name in parameters}
        vectors = {depths[name] for name, parameter in parameters.items() if parameter.ndim == 1}
        self._depths = {n: depths[n] for n, p in parameters.items() if p.ndim == 1 or depths[n] not in vectors}
        self._expected = {d: rate_at(d, len(model.layers), self.decay) for d in sorted(set(self._depths.values()))}

    def gradients(self, parameters: Parameters, progress: Progress) -> None:
        """Before the first update: keep the weights that will be compared."""
        if not self._measured:
            self._before = {name: parameters[name].detach().clone() for name in self._depths}

    def after_update(self, parameters: Parameters, progress: Progress, lr: float) -> None:
        """After the first update: the largest step of each depth over the rate."""
        if self._measured or lr == 0:
            return
        for name, depth in self._depths.items():
            step = float(torch.amax((parameters[name].detach() - self._before[name]).abs())) / lr
            self._measured[depth] = max(self._measured.get(depth, 0.0), step)
        self._before = {}

    def state(self) -> dict[str, Any]:
        """What was measured at the first update."""
        return {"measured": {str(depth): value for depth, value in self._measured.items()}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the measurement."""
        self._measured = {int(depth): value for depth, value in state["measured"].items()}

    def effect(self) -> Effect:
        """Ratio of the lowest trained depth's measured step to the top one's; holds when every depth moved at its rate."""
        wrong = [d for d, rate in self._expected.items() if abs(self._measured.get(d, 0.0) / rate - 1) > TOLERANCE]
        low, high = min(self._expected, default=0), max(self._expected, default=0)
        ratio = self._measured.get(low, 0.0) / max(self._measured.get(high, 0.0), 1e-30)
        asked = self._expected.get(low, 1.0) / self._expected.get(high, 1.0)
        passed = len(self._expected) > 1 and not wrong and self.decay < 1
        detail = f"depth {low} against depth {high}: asked {asked:.3g}" + (f"; off at depths {wrong[:5]}" if wrong else "")
        return Effect(self.use, "each depth moved at its own rate", ratio, passed, detail)
