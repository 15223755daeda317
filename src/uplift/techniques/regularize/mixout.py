"""Mixout: in each step, a random share of the weights stands at its pretrained value; dropout towards the start.

The trained weights themselves are never touched: the mix is made in the forward pass, so checkpoints, evaluation and the
saved model hold what was trained.

When: full fine-tuning of a large model on few rows, when some seeds fail; where dropout would damage pretrained weights.
When not: with adapters (the base does not move); with rows in plenty and long training, where its gain fades.
Paper: Lee, Cho and Kang 2020, Mixout; Zhang et al. 2021, Revisiting Few-sample BERT Fine-tuning, on how much remains.
Cost: memory three times the mixed weights (start, mix, masks); time 1.1 to 1.5 of a plain step (masks are drawn once a step).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from uplift.core.capability import Capabilities
from uplift.core.errors import RecipeError
from uplift.core.technique import Parameters, Technique
from uplift.core.values import Batch, Effect, derive_seed
from uplift.techniques.chance import linear_layers

TOLERANCE = 0.1


def mixed(weight: Tensor, start: Tensor, kept: Tensor, p: float) -> Tensor:
    """``start + kept / (1 - p) * (weight - start)``: a dropped weight stands at its start, and the mean is ``weight``.

    The paper's ``((1 - kept) start + kept weight - p start) / (1 - p)``, written so that a weight at its start stays there.
    """
    return torch.where(kept, torch.lerp(start, weight, 1.0 / (1.0 - p)), start)


@cache
def _mixing_class(base: type[nn.Module]) -> type[nn.Module]:
    """A linear layer that mixes its weight while it trains; under the same name, so that whatever goes by names finds it."""

    def forward(self: Any, x: Tensor) -> Tensor:
        if not self.training:
            return base.forward(self, x)  # type: ignore[no-any-return]
        self.mixing.passes.add_(1)
        weight = mixed(self.weight, self.mixing.start, self.mixing.kept, self.mixing.p)
        transposed = not isinstance(self, nn.Linear)
        return nn.functional.linear(x, weight.T if transposed else weight, self.bias)

    return type(base.__name__, (base,), {"forward": forward, "__module__": base.__module__})


class Mixing:
    """What one layer mixes with: its start, the mask of this step, the share dropped; ``passes`` is shared by all layers."""

    def __init__(self, name: str, weight: Tensor, p: float, passes: Tensor) -> None:
        self.name, self.p, self.passes = name, p, passes
        self.start = weight.detach().clone()
        self.kept = torch.ones_like(self.start, dtype=torch.bool)

    def draw(self, seed: int, step: int) -> None:
        """The mask of a step: a function of (seed, step, name) and of nothing else."""
        generator = torch.Generator(device=self.kept.device).manual_seed(derive_seed(seed, "mixout", step, self.name))
        self.kept.bernoulli_(1.0 - self.p, generator=generator)


class Mixout(Technique):
    """Replaces a share ``p`` of each trained linear weight inside the blocks by its pretrained value, anew at every step.

    All micro-batches of a step share a mask, so accumulation and several processes change nothing.
    """

    use: Literal["mixout"] = "mixout"
    p: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the weights that stand at their start (0: off; 0.5 to 0.9 is usual)."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        needs=frozenset({"training"}),
        mutates=frozenset({"layer_weights"}),
        cost=0.5,
        conflicts={
            "adapter": (
                "an adapter leaves the pretrained weights where they are, so there is nothing to mix",
                "use `{use: l2, of: adapter_product}` to hold a LoRA near the start, or `lora.dropout`",
            ),
            "head_only": ("only a new head trains, which has no pretrained weights", "remove one of the two"),
            "regroup": (
                "weights that begin to train during the run would go unmixed",
                "choose what trains once, with `freeze`, or remove `mixout`",
            ),
        },
    )
    off: ClassVar[Mapping[str, Any]] = {"p": 0.0}

    _layers: list[Any] = PrivateAttr(default_factory=list)
    _classes: list[Any] = PrivateAttr(default_factory=list)
    _passes: Any = PrivateAttr(None)
    _drawn: tuple[int, int] | None = PrivateAttr(None)
    _seen: list[int] = PrivateAttr(default_factory=lambda: [0, 0])

    def begin(self, model: Any, parameters: Parameters) -> None:
        """Make the trained linear layers of the blocks mixing ones. Raises RecipeError when there are none."""
        if self.p == 0:
            return
        trained = {id(parameter): name for name, parameter in parameters.items()}
        linear = [module for block in model.layers for module in linear_layers(block).values()]
        self._layers = [m for m in linear if id(getattr(m, "weight", None)) in trained and m.weight.ndim == 2]
        if not self._layers:
            raise RecipeError(
                "`mixout` found no trained linear weight inside the blocks", why="they are frozen", fix="remove one of the two"
            )
        self._passes = torch.zeros(1, dtype=torch.int64, device=model.device)
        self._classes = [type(layer) for layer in self._layers]
        for layer in self._layers:
            layer.mixing = Mixing(trained[id(layer.weight)], layer.weight, self.p, self._passes)
        for layer, kind in zip(self._layers, self._classes, strict=True):
            layer.__class__ = _mixing_class(kind)

    def embed(self, embeddings: Tensor, batch: Batch) -> Tensor:
        """Embeddings are left alone; a new step draws its masks here."""
        now = (batch.seed, batch.progress.step)
        if self._layers and now != self._drawn:
            self._drawn = now
            for layer in self._layers:
                layer.mixing.draw(*now)
            last = self._layers[-1].mixing.kept
            self._seen = [self._seen[0] + int((~last).sum()), self._seen[1] + last.numel()]
        return embeddings

    def finish(self, model: Any) -> Any:
        """Make the layers plain again."""
        for layer, kind in zip(self._layers, self._classes, strict=True):
            layer.__class__ = kind
            del layer.mixing
        self._layers = []
        return model

    def state(self) -> dict[str, Any]:
        """The counts behind the proof; masks follow from the seed, the start is the base model itself."""
        return {"seen": list(self._seen), "passes": 0 if self._passes is None else int(self._passes)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the counts."""
        self._seen = list(state["seen"])
        if self._passes is not None:
            self._passes.fill_(state["passes"])

    def effect(self) -> Effect:
        """Share of the last layer's weights at their start; holds within 10 % of ``p``, when forward passes used the mix."""
        dropped, total = self._seen
        passes = self.state()["passes"]
        share = dropped / max(1, total)
        passed = passes > 0 and total > 0 and abs(share - self.p) <= TOLERANCE * self.p
        detail = f"{passes} passes through {len(self._classes)} layers"
        return Effect(self.use, f"{100 * self.p:g} % of the weights stood at their start", share, passed, detail)
