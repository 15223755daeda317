"""Dropout injection: adds dropout to the blocks of a model that was built without any.

When: several epochs on few rows; as the source of chance that ``r_drop`` compares; for Llama, Qwen, SmolLM and the like.
When not: for a single epoch, where little is learned by heart; with models that have dropout of their own (refused).
Paper: Srivastava et al. 2014, Dropout; Liu et al. 2023, Dropout Reduces Underfitting; Xue et al. 2023 on repeated data.
Cost: memory one byte per dropped value for the backward pass; time 1 to 3 % (hidden states of frozen layers are not cached).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from uplift.core.capability import Capabilities
from uplift.core.errors import RecipeError
from uplift.core.values import Effect
from uplift.techniques.chance import LayerChance, own_dropout, residual_outputs

Place = Literal["attention", "feed_forward", "hidden"]
TOLERANCE = 0.1


class Dropout(LayerChance):
    """Sets a random share ``p`` of values to zero in training and scales up the rest; evaluation is the plain model.

    Attention and feed-forward outputs are dropped before they are added to the residual stream.
    """

    use: Literal["dropout"] = "dropout"
    p: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of values set to zero (0: off)."""
    places: Annotated[list[Place], Field(min_length=1, max_length=3)] = ["attention", "feed_forward"]
    """Where in each block: outputs of attention, of the feed-forward part, or the hidden states that leave the block."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        needs=frozenset({"training"}), gives=frozenset({"dropout", "random_layers"}), exclusive=frozenset({"dropout_in_blocks"})
    )
    off: ClassVar[Mapping[str, Any]] = {"p": 0.0}

    def edit(self, model: Any) -> Any:
        """Hook the places. Raises RecipeError when the model has dropout already, or none of the places."""
        if self.p == 0:
            return model
        own = own_dropout(model.layers)
        if own > 0:
            raise RecipeError(
                f"`dropout` is for models without dropout, and this one has its own (p = {own:g})",
                why="both together would drop more than either says",
                fix="remove `dropout`",
            )
        modules = [module for block in model.layers for module in self._modules(block, model.config.hidden_size)]
        if not modules:
            raise RecipeError(
                f"`dropout.places` {self.places} are nowhere in this model's blocks",
                why="no layer of the hidden width with such a name was found",
                fix="use `places: [hidden]`",
            )
        self._seen = torch.zeros(2, dtype=torch.int64, device=model.device)
        for number, module in enumerate(modules):
            self.hook(module, self._counted if number == len(modules) - 1 else self._dropped)
        return model

    def _modules(self, block: nn.Module, width: int) -> list[nn.Module]:
        found = {**residual_outputs(block, width), "hidden": block}
        return [found[place] for place in self.places if place in found]

    def _dropped(self, output: Tensor, given: Any, options: Any) -> Tensor:
        return nn.functional.dropout(output, self.p)

    def _counted(self, output: Tensor, given: Any, options: Any) -> Tensor:
        """As ``_dropped``; also counts what became zero, in one place so that it costs nothing."""
        dropped, there = self._dropped(output, given, options), output.detach() != 0
        self._seen[0].add_((there & (dropped.detach() == 0)).sum())
        self._seen[1].add_(there.sum())
        return dropped

    def effect(self) -> Effect:
        """Share of zeros in the last place; holds within 10 % of ``p``."""
        zeros, total = self.state()["seen"] or (0, 0)
        share = zeros / max(1, total)
        passed = total > 0 and abs(share - self.p) <= TOLERANCE * self.p
        return Effect(
            self.use, f"{100 * self.p:g} % of the values were dropped", share, passed, f"of {total} in the last place"
        )
