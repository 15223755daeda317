"""NEFTune: adds uniform noise to the embeddings during training.

When: instruction tuning on a few thousand conversations; answers become longer and freer.
When not: for facts, classification or reasoning (no gain was found there); with on-policy scoring, which must be exact.
Paper: Jain et al. 2023, NEFTune: Noisy Embeddings Improve Instruction Finetuning.
Cost: memory of one embedding output; time almost none (the hidden states of frozen layers cannot be cached, though).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from uplift.core.capability import Capabilities
from uplift.core.technique import Technique
from uplift.core.values import Batch, Effect
from uplift.data.packing import sample_generator
from uplift.techniques.perturbation import SCORED_EXACTLY

TOLERANCE = 0.1


def noise_bound(alpha: float, length: int, width: int) -> float:
    """Largest entry of a sample's noise, ``alpha / sqrt(L D)``, with L its own tokens (no padding) and D the width."""
    return alpha / math.sqrt(length * width)


def expected_norm(alpha: float) -> float:
    """Expected L2 norm of a sample's noise, ``alpha / sqrt(3)`` at any length: uniform on [-b, b] has variance b^2 / 3."""
    return alpha / math.sqrt(3.0)


class Neftune(Technique):
    """Noise of each sample comes from (seed, step, sample id), so packing and accumulation do not change it."""

    use: Literal["neftune"] = "neftune"
    alpha: Annotated[float, Field(ge=0, le=1000)] = 5.0
    """Strength of the noise (0: off; 5 to 15 is usual)."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        needs=frozenset({"training"}), mutates=frozenset({"embeddings"}), conflicts=SCORED_EXACTLY
    )
    off: ClassVar[Mapping[str, Any]] = {"alpha": 0.0}

    _samples: int = PrivateAttr(0)
    _squares: Any = PrivateAttr(0.0)

    def embed(self, embeddings: Tensor, batch: Batch) -> Tensor:
        """Embeddings (1, T, D) plus noise."""
        if self.alpha == 0:
            return embeddings
        noise = self.noise(batch, embeddings.shape[-1])
        self._samples += len(batch.lengths)
        self._squares = self._squares + noise.double().pow(2).sum()
        return embeddings + noise.to(embeddings.dtype)

    def noise(self, batch: Batch, width: int) -> Tensor:
        """(1, T, D) noise of a packed row, in float32."""
        parts = []
        for index, length in enumerate(batch.lengths):
            generator = sample_generator(batch, self.use, index)
            uniform = torch.rand(length, width, generator=generator, device=batch.ids.device)
            parts.append((2.0 * uniform - 1.0) * noise_bound(self.alpha, length, width))
        return torch.cat(parts)[None]

    def state(self) -> dict[str, Any]:
        """The sums behind the proof."""
        return {"samples": self._samples, "squares": float(self._squares)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the sums."""
        self._samples, self._squares = state["samples"], state["squares"]

    def effect(self) -> Effect:
        """Root mean square norm of the added noise over the expected one; holds within 10 % of 1."""
        measured = math.sqrt(float(self._squares) / max(1, self._samples))
        ratio = measured / expected_norm(self.alpha) if self.alpha else 0.0
        passed = self._samples > 0 and abs(ratio - 1.0) <= TOLERANCE
        return Effect(
            self.use, "noise of the stated size was added", ratio, passed, f"{self._samples} samples, norm {measured:.3g}"
        )
