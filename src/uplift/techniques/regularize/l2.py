"""Coupled L2: adds ``decay * w`` to the gradient, or with LoRA pulls what its product added back to zero.

This is the penalty ``decay / 2 * ||w||^2``: it is clipped with the gradient and passes through Adam's normalisation. The
decoupled decay of AdamW (``train.optimizer.weight_decay``) shrinks the weights beside the update and is another thing.

When: to compare with decoupled decay; ``of: adapter_product`` to hold a LoRA near the model it adapts.
When not: as the everyday decay, which AdamW's own does better: here weights with large gradients are decayed least.
Paper: Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization (section 2 compares the two).
Cost: memory of one tensor at a time; time one pass over the decayed weights per step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from uplift.core.capability import Capabilities
from uplift.core.errors import RecipeError
from uplift.core.technique import Parameters, Technique
from uplift.core.values import Effect, Group, Progress
from uplift.model.adapters import ADAPTER
from uplift.techniques.fingerprint import total_norm
from uplift.techniques.lora_init import lora_layers
from uplift.techniques.selection import matching


def l2_gradient(weight: Tensor, decay: float) -> Tensor:
    """Gradient of ``decay / 2 * ||w||^2``."""
    return weight * decay


@dataclass(frozen=True)
class Pair:
    """The trained matrices A (R, I) and B (O, R) of one LoRA layer, their scale, and where they started."""

    a: Any
    b: Any
    scale: float
    start: tuple[Tensor, Tensor]

    def gradients(self, decay: float) -> tuple[Tensor, Tensor]:
        """Gradients of ``decay / 2 * ||scale (B A - B0 A0)||^2`` to A and B; no product (O, I) is built."""
        a, b, (a0, b0) = self.a, self.b, self.start
        factor = decay * self.scale * self.scale
        return factor * ((b.T @ b) @ a - (b.T @ b0) @ a0), factor * (b @ (a @ a.T) - b0 @ (a0 @ a.T))


def _factors(layer: Any) -> tuple[Any, Any]:
    return layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight


def _pair(layer: Any) -> Pair:
    a, b = _factors(layer)
    return Pair(a, b, layer.scaling[ADAPTER], (a.detach().clone(), b.detach().clone()))


class L2(Technique):
    """Adds the gradient of an L2 penalty to that of the loss, before clipping.

    Decoupled decay of the same weights is switched off, so that nothing decays twice, unless `together` is set.
    """

    use: Literal["l2"] = "l2"
    decay: Annotated[float, Field(ge=0, le=100)] = 0.01
    """Pull towards zero per unit of weight (0: off)."""
    of: Literal["weights", "adapter_product"] = "weights"
    """`adapter_product`: what a LoRA has added to the weights, B A less its start (decaying A and B is not the same)."""
    names: Annotated[list[str], Field(max_length=100)] = []
    """Shell-style patterns of parameter names for `of: weights`; empty: all trained matrices (no norms, no biases)."""
    together: bool = False
    """Allow the optimizer's decoupled decay and `l2_sp` on the same weights."""

    capabilities: ClassVar[Capabilities] = Capabilities(needs=frozenset({"training"}), mutates=frozenset({"gradients"}))
    off: ClassVar[Mapping[str, Any]] = {"decay": 0.0}

    _named: Parameters = PrivateAttr(default_factory=dict)
    _pairs: list[Pair] = PrivateAttr(default_factory=list)
    _pulled: int = PrivateAttr(0)
    _share: float = PrivateAttr(0.0)

    def declare(self) -> Capabilities:
        """Two pulls on one weight are refused unless they are asked for."""
        why = "one pulls the same weights to zero, the other to where they started"
        conflicts = {} if self.together else {"pull_to_start": (why, "keep one of the two, or set `l2.together: true`")}
        if self.of == "weights" and not self.names:
            conflicts["vectors_only"] = ("only vectors train, and matrices are what it pulls", "name some in `l2.names`")
        needs = self.capabilities.needs | ({"adapter"} if self.of == "adapter_product" else set())
        return Capabilities(needs=needs, mutates=self.capabilities.mutates, conflicts=conflicts)

    def groups(self, model: Any) -> list[Group]:
        """Take the decayed weights out of decoupled decay."""
        if self.decay == 0 or self.together:
            return []
        return [Group(names=frozenset(self._chosen(model)), weight_decay=0.0)]

    def _chosen(self, model: Any) -> Parameters:
        """What may be decayed; of it, only what has a gradient is."""
        named: Parameters = model.parameters_by_name()
        if self.of == "adapter_product":
            factors = {id(weight) for layer in self._lora(model) for weight in _factors(layer)}
            return {name: parameter for name, parameter in named.items() if id(parameter) in factors}
        if self.names:
            chosen = matching(named, self.names, self.use)
            return {name: parameter for name, parameter in named.items() if name in chosen}
        return {name: parameter for name, parameter in named.items() if parameter.ndim >= 2}

    def _lora(self, model: Any) -> list[Any]:
        """The LoRA layers. Raises RecipeError when there are none."""
        layers = [layer for layer in lora_layers(model.pretrained).values() if ADAPTER in layer.lora_A]
        if not layers:
            raise RecipeError(
                "`l2.of: adapter_product` found no LoRA matrices",
                why="the adapter of this recipe is of another kind",
                fix="use `{use: lora}`, or `of: weights`",
            )
        return layers

    def begin(self, model: Any, parameters: Parameters) -> None:
        """Find the weights, or the pairs of matrices."""
        self._named = self._chosen(model)
        if self.of == "adapter_product":
            self._pairs = [_pair(layer) for layer in self._lora(model)]

    def _pulls(self) -> Iterator[tuple[Any, Tensor]]:
        """(parameter, what to add to its gradient) of all that has a gradient."""
        if self.of == "weights":
            for weight in self._named.values():
                if weight.grad is not None:
                    yield weight, l2_gradient(weight, self.decay)
        for pair in self._pairs:
            for factor, pull in zip((pair.a, pair.b), pair.gradients(self.decay), strict=True):
                if factor.grad is not None:
                    yield factor, pull

    @torch.no_grad()
    def gradients(self, parameters: Parameters, progress: Progress) -> None:
        """Add the pull, and note its size beside the gradient's."""
        if self.decay == 0:
            return
        before = total_norm(weight.grad for weight in self._named.values() if weight.grad is not None)
        squares = []
        for weight, pull in self._pulls():
            weight.grad.add_(pull)
            squares.append(pull.float().pow(2).sum())
        size = float(torch.stack(squares).sum().sqrt()) if squares else 0.0
        self._pulled += size > 0
        self._share += size / max(before, 1e-30)

    def state(self) -> dict[str, Any]:
        """The sums behind the proof."""
        return {"pulled": self._pulled, "share": self._share}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the sums."""
        self._pulled, self._share = state["pulled"], state["share"]

    def effect(self) -> Effect:
        """Norm of the pull over the norm of the loss's gradient, averaged; holds when steps were pulled."""
        value = self._share / max(1, self._pulled)
        what = "the adapter's product" if self.of == "adapter_product" else f"{len(self._named)} tensors"
        detail = f"{what} pulled at {self._pulled} steps"
        return Effect(self.use, "the gradient was pulled towards smaller weights", value, self._pulled > 0, detail)
