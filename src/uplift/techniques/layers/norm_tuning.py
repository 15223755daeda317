"""Norm tuning: trains the weights and biases of the normalisation layers and a new classification head, and nothing else.

When: the smallest possible change to a decoder without biases (Llama, Qwen, Mistral); a baseline for adapters.
When not: tasks that need much new knowledge; there are only some thousand numbers per block pair to learn with.
Paper: Zhao et al. 2023, Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning.
Cost: memory of gradients and moments nearly none (below 0.1 % of a model); time 0.7 of full fine-tuning.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from uplift.core.errors import RecipeError
from uplift.techniques.partial_training import VectorTraining, new_head


def norm_names(model: Any) -> frozenset[str]:
    """Names of the parameters that norms own directly; a norm is a module whose class says so (``LlamaRMSNorm``)."""
    return frozenset(
        f"{path}.{name}"
        for path, module in model.pretrained.named_modules()
        if "norm" in type(module).__name__.lower()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 1
    )


class NormTuning(VectorTraining):
    """Freezes everything that is not a norm (or the classification head)."""

    use: Literal["norm_tuning"] = "norm_tuning"

    claim: ClassVar[str] = "only norms and the head moved"

    def frozen(self, model: Any) -> frozenset[str]:
        """All but norms and a classification head. Raises RecipeError when the norms have no weights."""
        names, norms = frozenset(model.parameters_by_name()), norm_names(model)
        if not norms:
            raise RecipeError(
                "`norm_tuning` finds no norms with weights in this model",
                why=f"{model.config.model_type} models normalise without any",
                fix="use `bitfit` if it has biases, or `lora`",
            )
        return names - norms - new_head(model)
