"""VeRA: freezes the model and two random matrices that all layers share, and trains two vectors for each layer.

When: very many tasks on one base: an adapter is about a tenth of LoRA's, though its rank is high.
When not: when memory of activations is short (the random matrices work at high rank); `lora` learns more for the same time.
Paper: Kopiczko, Blankevoort and Asano 2023, VeRA: Vector-based Random Matrix Adaptation.
Cost: memory of gradients and optimizer almost none; time 0.7 to 0.9 of full fine-tuning, with the rank.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from peft import VeraConfig
from pydantic import Field

from uplift.core.capability import Capabilities
from uplift.techniques.fingerprint import total_norm
from uplift.techniques.peft_adapter import VECTORS, PeftAdapter, adapter_tensors


class Vera(PeftAdapter):
    """Adapters of PEFT: ``W + diag(b) B diag(d) A`` with A and B random and frozen; b starts at zero."""

    use: Literal["vera"] = "vera"
    rank: Annotated[int, Field(ge=1, le=8192)] = 256
    """Width of the random matrices; costs time, hardly any parameters."""
    start: Annotated[float, Field(gt=0, le=10)] = 0.1
    """Where the vector d starts (the paper: 0.1 or less)."""

    capabilities: ClassVar[Capabilities] = VECTORS
    own: ClassVar[tuple[str, ...]] = ("vera_", "modules_to_save")
    default_lr: ClassVar[float | None] = 4e-3

    def config(self, model: Any) -> VeraConfig:
        """PEFT's configuration of this adapter for ``model``; the random matrices are drawn from torch's global generator."""
        return VeraConfig(
            task_type=model.task_type,
            r=self.rank,
            d_initial=self.start,
            target_modules=self.targets,
            projection_prng_key=int(torch.randint(2**31, (), device="cpu")),
            save_projection=True,
        )

    def distance(self, model: Any) -> float:
        """Norm of all vectors b: without them nothing is added."""
        return total_norm(adapter_tensors(model, "vera_lambda_b"))
