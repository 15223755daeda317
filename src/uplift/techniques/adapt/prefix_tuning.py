"""Prefix tuning: freezes the model and trains keys and values that every document attends to, in every layer.

When: a small file per task over one shared model; stronger than prompt tuning on small and middle models.
When not: when LoRA is possible and its merged weights are welcome: a prefix cannot be merged and takes room in the context.
Paper: Li and Liang 2021, Prefix-Tuning: Optimizing Continuous Prompts for Generation.
Cost: memory of gradients and optimizer falls to the prefix's share; time about 0.7 of full fine-tuning.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from uplift.model.virtual_prompt import VirtualPrompt, key_shape
from uplift.techniques.soft_prompt import WordPrompt, starting_keys


class Reparametrisation(nn.Module):
    """A perceptron that makes changes of all layers from one vector per token; it gives zero at the start.

    The changes are measured in the spread (W,) of the keys or values of their layer, which differs many times over between
    models and layers: so one learning rate fits them all.
    """

    spread: Tensor

    def __init__(self, width: int, hidden: int, spread_W: Tensor) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(width, hidden), nn.Linear(hidden, len(spread_W))
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.register_buffer("spread", spread_W)

    def forward(self, rows_PE: Tensor) -> Tensor:
        """(P, E) -> (P, W)."""
        return self.spread * self.last(torch.tanh(self.first(rows_PE)))


def spread_of(rows_PW: Tensor, layers: int) -> Tensor:
    """(W,): the standard deviation of the layer's keys, or values, in each of their places."""
    parts = rows_PW.view(len(rows_PW), 2 * layers, -1)
    return parts.std(dim=(0, 2), correction=0).repeat_interleave(parts.shape[2])


class PrefixTuning(WordPrompt):
    """Trained keys and values of virtual tokens, at the start those that the model itself gives to words; saved apart in PEFT's
    format, since nothing can be merged."""

    use: Literal["prefix_tuning"] = "prefix_tuning"
    reparametrise: bool = True
    """Train a perceptron that makes the changes of all layers from one vector per token; it is dropped at the end. `false`
    trains keys and values themselves, which wants a `train.lr` of about 1e-2."""
    hidden: Annotated[int, Field(ge=1, le=65_536)] = 512
    """Hidden width of that perceptron."""

    default_lr: ClassVar[float | None] = 5e-4

    def make(self, model: Any) -> VirtualPrompt:
        """Keys and values, trained as they are or through the perceptron."""
        start = starting_keys(model, self.tokens, self.init, self.text)
        heads, _ = key_shape(model.backbone)
        if not self.reparametrise:
            return VirtualPrompt("keys", start, heads=heads)
        width = int(model.config.get_text_config().hidden_size)
        encoder = Reparametrisation(width, self.hidden, spread_of(start, len(model.layers)))
        return VirtualPrompt("keys", torch.randn(self.tokens, width), heads=heads, encoder=encoder, start=start)
