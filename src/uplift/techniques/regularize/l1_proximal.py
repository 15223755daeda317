"""Proximal L1: shrinks weights towards zero after each update and sets small ones to exactly zero.

When: a sparse model is wanted of one that is trained from the start, or a strong regulariser on few rows.
When not: for a pretrained model and a short training (it pulls large weights as far as small ones: use `sparsify`); with
adapters (zeros in the factors are no zeros in the product) or averaged weights (an average is rarely zero).
Paper: Parikh and Boyd 2014, Proximal Algorithms (section 6.5.2); Tibshirani 1996 for the penalty.
Cost: memory none; time one pass over the chosen weights per step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor
from torch.nn.functional import softshrink

from uplift.core.capability import Capabilities
from uplift.core.technique import Parameters, Technique
from uplift.core.values import Effect, Progress
from uplift.techniques.selection import class_head, matching


def soft_threshold(weight: Tensor, threshold: float) -> Tensor:
    """``sign(w) * max(|w| - threshold, 0)``: the proximal step of ``threshold * ||w||_1``; it gives exact zeros."""
    return softshrink(weight, threshold)


def zero_share(tensors: Sequence[Tensor]) -> float:
    """Share of elements that are exactly zero."""
    size = sum(tensor.numel() for tensor in tensors)
    return sum(int((tensor == 0).sum()) for tensor in tensors) / max(1, size)


class L1Proximal(Technique):
    """Soft-thresholds the matrices of the layers by ``lr * strength`` after each update."""

    use: Literal["l1_proximal"] = "l1_proximal"
    strength: Annotated[float, Field(ge=0, le=1000)] = 0.1
    """Penalty per unit of absolute weight (0: off)."""
    names: Annotated[list[str], Field(max_length=100)] = []
    """Shell-style patterns of parameter names; empty: all matrices of the layers (not embeddings, norms, biases or heads)."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        needs=frozenset({"training"}),
        mutates=frozenset({"sparsity"}),
        conflicts={
            "adapter": (
                "zeros in an adapter's factors are no zeros in the merged weights",
                "train all weights, or remove `l1_proximal`",
            ),
            "averaged_weights": ("the average of a weight that becomes zero is not zero", "remove one of the two"),
            "head_only": ("the layers whose weights it would shrink are frozen", "remove one of the two"),
        },
    )
    off: ClassVar[Mapping[str, Any]] = {"strength": 0.0}

    _chosen: Parameters = PrivateAttr(default_factory=dict)
    _zeros: dict[str, int] = PrivateAttr(default_factory=dict)
    _before: float = PrivateAttr(0.0)
    _after: float = PrivateAttr(0.0)

    def begin(self, model: Any, parameters: Parameters) -> None:
        """Choose the tensors and count the zeros they have already."""
        named: Parameters = model.parameters_by_name()
        if self.names:
            chosen = matching(named, self.names, self.use)
        else:
            inside = {name for name, p in named.items() if p.ndim >= 2 and 1 <= model.depth(name) <= len(model.layers)}
            chosen = frozenset(inside - class_head(named))
        self._chosen = {name: parameter for name, parameter in named.items() if name in chosen}
        self._take_up(parameters)

    def _take_up(self, names: Iterable[str]) -> None:
        """Count the zeros of weights that train for the first time."""
        first = [name for name in names if name in self._chosen and name not in self._zeros]
        self._zeros |= {name: int((self._chosen[name] == 0).sum()) for name in first}

    @torch.no_grad()
    def after_update(self, parameters: Parameters, progress: Progress, lr: float) -> None:
        """Shrink by ``lr * strength``."""
        if self.strength == 0:
            return
        self._take_up(parameters)
        for name in self._zeros.keys() & parameters.keys():
            parameters[name].copy_(soft_threshold(parameters[name], lr * self.strength))

    def finish(self, model: Any) -> Any:
        """Count the exact zeros."""
        trained = [self._chosen[name] for name in self._zeros]
        self._before = sum(self._zeros.values()) / max(1, sum(weight.numel() for weight in trained))
        self._after = zero_share(trained)
        return model

    def state(self) -> dict[str, Any]:
        """The zeros of every weight before it trained."""
        return {"zeros": dict(self._zeros)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self._zeros = dict(state["zeros"])

    def effect(self) -> Effect:
        """Share of exact zeros; holds when it grew."""
        detail = f"{100 * self._before:.3g} % before, {100 * self._after:.3g} % after, in {len(self._zeros)} tensors"
        return Effect(self.use, "weights became exactly zero", self._after, self._after > self._before, detail)
