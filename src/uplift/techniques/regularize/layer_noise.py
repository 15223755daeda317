"""Early-layer noise: adds Gaussian noise to the outputs of the first blocks in training, in proportion to their size.

When: robustness to small shifts of the input; a cheap control for adversarial training (noise of the same size).
When not: for a single epoch on plenty of rows; when the first blocks should stay exactly what they are.
Paper: Bishop 1995, Training with Noise is Equivalent to Tikhonov Regularization; Hua et al. 2021 for language models.
Cost: memory one hidden state per noisy block for a moment; time about none (hidden states of frozen layers are not cached).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from uplift.core.errors import RecipeError
from uplift.core.values import Effect
from uplift.techniques.chance import LayerChance

TOLERANCE = 0.1


def noise_like(states: Tensor, strength: float) -> Tensor:
    """Gaussian noise whose norm is about ``strength`` times that of each state (..., D); a constant to the gradient."""
    size = states.detach().float().norm(dim=-1, keepdim=True) * (strength / math.sqrt(states.shape[-1]))
    return (torch.randn(states.shape, device=states.device) * size).to(states.dtype)


class LayerNoise(LayerChance):
    """Noise on the hidden states that leave the first ``layers`` blocks; evaluation sees none."""

    use: Literal["layer_noise"] = "layer_noise"
    strength: Annotated[float, Field(ge=0, le=10)] = 0.05
    """Norm of the noise as a share of the norm of the state it is added to (0: off)."""
    layers: Annotated[int, Field(ge=1, le=10_000)] = 2
    """How many blocks, from the first on."""

    off: ClassVar[Mapping[str, Any]] = {"strength": 0.0}

    def edit(self, model: Any) -> Any:
        """Hook the first blocks. Raises RecipeError when the model has fewer."""
        if self.strength == 0:
            return model
        if self.layers > len(model.layers):
            raise RecipeError(
                f"`layer_noise.layers` is {self.layers}, but the model has {len(model.layers)} blocks", fix="lower it"
            )
        self._seen = torch.zeros(2, dtype=torch.float32, device=model.device)
        for block in model.layers[: self.layers]:
            self.hook(block, self._noisy)
        return model

    def _noisy(self, output: Tensor, given: Any, options: Any) -> Tensor:
        noise = noise_like(output, self.strength)
        states = output.detach().float().norm()
        self._seen[0].add_(torch.where(states > 0, noise.float().norm() / states.clamp_min(1e-30), 0.0))
        self._seen[1].add_(1.0)
        return output + noise

    def effect(self) -> Effect:
        """Norm of the noise over the norm of the states, averaged; holds within 10 % of ``strength``."""
        total, count = self.state()["seen"] or (0.0, 0.0)
        ratio = total / max(1.0, count)
        passed = count > 0 and abs(ratio - self.strength) <= TOLERANCE * self.strength
        return Effect(self.use, "noise of the stated size was added", ratio, passed, f"{count:.0f} outputs of blocks")
