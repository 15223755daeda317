"""Linear probe: trains only a new classification head on top of the model, which stays exactly as it is.

When: a fast, strong baseline for classification; to see what the model knows already; before full fine-tuning (first the head).
When not: when the representation itself must change (small models on subtle tasks gain much from LoRA or full fine-tuning).
Paper: Alain and Bengio 2016, Understanding Intermediate Layers; Kumar et al. 2022, Fine-Tuning Can Distort Pretrained Features.
Cost: memory almost none; time one forward per row and epoch, and after the first epoch almost none (hidden states are cached).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from uplift.core.capability import Capabilities
from uplift.core.errors import RecipeError
from uplift.techniques.partial_training import CHOICE, PartialTraining
from uplift.techniques.selection import class_head


class LinearProbe(PartialTraining):
    """Freezes everything but the classification head."""

    use: Literal["linear_probe"] = "linear_probe"

    claim: ClassVar[str] = "only the head moved"
    kept_as: ClassVar[str] = "of the body frozen"
    capabilities: ClassVar[Capabilities] = Capabilities(
        needs=frozenset({"training", "class_head"}),
        gives=frozenset({"head_only"}),
        exclusive=frozenset({CHOICE}),
        conflicts={"adapter": ("one trains only the head, the other adapts the layers below it", "remove one of the two")},
    )

    def frozen(self, model: Any) -> frozenset[str]:
        """Everything outside the head. Raises RecipeError when the model's head is not recognised."""
        names = frozenset(model.parameters_by_name())
        head = class_head(names)
        if not head:
            raise RecipeError("`linear_probe` finds no classification head in this model", fix="use `task.head: classifier`")
        return names - head
