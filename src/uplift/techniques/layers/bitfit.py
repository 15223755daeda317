"""BitFit: trains the bias vectors and a new classification head, and nothing else.

When: encoders of BERT's kind and GPT-2, where biases are everywhere; tiny files per task, little data.
When not: models without biases (Llama, Mistral, Gemma): use `norm_tuning` there; tasks that need much new knowledge.
Paper: Ben Zaken, Ravfogel and Goldberg 2022, BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Models.
Cost: memory of gradients and moments nearly none (biases are about 0.1 % of a model); time 0.7 of full fine-tuning.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from uplift.core.errors import RecipeError
from uplift.techniques.partial_training import VectorTraining, new_head


class Bitfit(VectorTraining):
    """Freezes everything that is not a bias (or the classification head)."""

    use: Literal["bitfit"] = "bitfit"

    claim: ClassVar[str] = "only biases and the head moved"

    def frozen(self, model: Any) -> frozenset[str]:
        """All but biases and a classification head. Raises RecipeError when the model's blocks have no biases."""
        names, head = frozenset(model.parameters_by_name()), new_head(model)
        biases = frozenset(name for name in names if name.rpartition(".")[2] == "bias")
        if not biases - head:
            raise RecipeError(
                "`bitfit` finds no biases in this model",
                why=f"{model.config.model_type} models are built without them",
                fix="use `norm_tuning`, which trains the norms' vectors in the same way",
            )
        return names - biases - head
