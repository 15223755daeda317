"""Prompt tuning: freezes the model and trains the embeddings of a few virtual tokens that stand before every document.

When: a very small file per task (some kilobytes) over one shared model, above all a large one.
When not: for small models, where it stays behind LoRA; when much must be learned; when a few tokens of context are too dear.
Paper: Lester et al. 2021, The Power of Scale for Parameter-Efficient Prompt Tuning.
Cost: memory of gradients and optimizer nearly none; time about 0.7 of full fine-tuning, the virtual tokens run once per row.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from uplift.model.virtual_prompt import VirtualPrompt
from uplift.techniques.soft_prompt import Init, SoftPrompt, check_text, starting_embeddings


class PromptTuning(SoftPrompt):
    """Trained embeddings of virtual tokens; saved apart in PEFT's format, since nothing can be merged."""

    use: Literal["prompt_tuning"] = "prompt_tuning"
    tokens: Annotated[int, Field(ge=0, le=1000)] = 20
    """Virtual tokens before every document (0: off; 5 to 100 is usual)."""
    init: Init = "vocabulary"
    """How they start: as common words drawn at random, as the words of `text`, or as noise of the same spread."""
    text: Annotated[str, Field(max_length=10_000)] | None = None
    """What they say at the start (with `init: text`): a description of the task; repeated or cut to the number of tokens."""

    default_lr: ClassVar[float | None] = 1e-2

    @model_validator(mode="after")
    def _text_when_asked(self) -> Self:
        check_text(self.init, self.text)
        return self

    @property
    def length(self) -> int:
        """Virtual tokens."""
        return self.tokens

    def make(self, model: Any) -> VirtualPrompt:
        """Virtual tokens that start as words."""
        return VirtualPrompt("tokens", starting_embeddings(model, self.tokens, self.init, self.text))
