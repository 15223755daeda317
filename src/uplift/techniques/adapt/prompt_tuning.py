"""Prompt tuning: freezes the model and trains the embeddings of a few virtual tokens that stand before every document.

When: a very small file per task (some kilobytes) over one shared model, above all a large one.
When not: for small models, where it stays behind LoRA; when much must be learned; when a few tokens of context are too dear.
Paper: Lester et al. 2021, The Power of Scale for Parameter-Efficient Prompt Tuning.
Cost: memory of gradients and optimizer nearly none; time about 0.7 of full fine-tuning, the virtual tokens run once per row.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from uplift.model.virtual_prompt import VirtualPrompt
from uplift.techniques.soft_prompt import WordPrompt, starting_embeddings


class PromptTuning(WordPrompt):
    """Trained embeddings of virtual tokens; saved apart in PEFT's format, since nothing can be merged."""

    use: Literal["prompt_tuning"] = "prompt_tuning"

    default_lr: ClassVar[float | None] = 1e-2

    def make(self, model: Any) -> VirtualPrompt:
        """Virtual tokens that start as words."""
        return VirtualPrompt("tokens", starting_embeddings(model, self.tokens, self.init, self.text))
