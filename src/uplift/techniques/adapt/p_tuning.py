"""P-tuning: freezes the model and trains virtual tokens through a small network that makes their embeddings.

When: as prompt tuning, where that learns slowly or hangs on its start: the network ties the tokens together.
When not: when the number of trained weights during training matters (the network is larger than the prompt it makes).
Paper: Liu et al. 2021, GPT Understands, Too.
Cost: memory of gradients and optimizer for the network alone, dropped at the end; time about 0.7 of full fine-tuning.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from uplift.model.virtual_prompt import VirtualPrompt
from uplift.techniques.soft_prompt import SoftPrompt


def perceptron(width: int, hidden: int) -> nn.Sequential:
    """Each token by itself: two hidden layers."""
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, width))


class Recurrent(nn.Module):
    """The tokens in their order, read both ways by an LSTM of two layers, then a perceptron."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, hidden, num_layers=2, bidirectional=True)
        self.head = nn.Sequential(nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, width))

    def forward(self, rows_PE: Tensor) -> Tensor:
        """(P, E) -> (P, E)."""
        out: Tensor = self.head(self.lstm(rows_PE)[0])
        return out


class PTuning(SoftPrompt):
    """Virtual tokens out of a network; at the end they are an ordinary soft prompt, saved apart in PEFT's format."""

    use: Literal["p_tuning"] = "p_tuning"
    encoder: Literal["mlp", "lstm"] = "mlp"
    """The network: a perceptron for each token, or a two-way LSTM over all of them."""
    hidden: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Hidden width of the network; default: that of the model."""

    default_lr: ClassVar[float | None] = 1e-3

    def make(self, model: Any) -> VirtualPrompt:
        """Random vectors and the network that turns them into embeddings."""
        width = int(model.pretrained.get_input_embeddings().weight.shape[1])
        hidden = self.hidden or int(model.config.get_text_config().hidden_size)
        network = perceptron(width, hidden) if self.encoder == "mlp" else Recurrent(width, hidden)
        return VirtualPrompt("tokens", torch.randn(self.tokens, width), encoder=network)
