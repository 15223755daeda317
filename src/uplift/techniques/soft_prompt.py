"""What prompt, prefix and P-tuning share: how the prompt starts, that nothing else trains, and the proof that it moved.

Shapes: P virtual tokens, E embedding width, W width of a row of keys and values (layers * 2 * heads * head width).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from uplift.core.capability import Capabilities
from uplift.core.errors import RecipeError
from uplift.core.technique import Parameters
from uplift.core.values import Group
from uplift.model.virtual_prompt import PREFIX, VirtualPrompt, row_width
from uplift.techniques.fingerprint import total_norm
from uplift.techniques.frozen_base import FrozenBase
from uplift.techniques.selection import class_head

Init = Literal["vocabulary", "text", "random"]
COMMON = 5000
"""Words are drawn from the first so many of the vocabulary: byte-pair vocabularies are in the order of frequency."""


@torch.no_grad()
def starting_embeddings(model: Any, count: int, init: Init, text: str | None) -> Tensor:
    """(P, E): words drawn from the common ones, the words of ``text`` (over and over, or cut), or noise of their spread."""
    embedding = model.pretrained.get_input_embeddings()
    if init == "text":
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        chosen = torch.tensor([ids[place % len(ids)] for place in range(count)])
    else:
        special = frozenset(model.tokenizer.all_special_ids)
        words = [token for token in range(min(COMMON, embedding.weight.shape[0])) if token not in special]
        chosen = torch.tensor(words)[torch.randint(len(words), (count,))]
    rows: Tensor = embedding(chosen.to(embedding.weight.device)).float()
    return torch.randn_like(rows) * rows.std() if init == "random" else rows


@torch.no_grad()
def starting_keys(model: Any, count: int, init: Init, text: str | None) -> Tensor:
    """(P, W): keys and values that the model itself gives to the words of ``starting_embeddings``, or noise of their spread."""
    words = VirtualPrompt("tokens", starting_embeddings(model, count, "vocabulary" if init == "random" else init, text))
    if words.embedding.is_meta:
        return torch.empty(count, row_width("keys", model.backbone))
    pairs = words.key_values(model.backbone)
    rows_PL2GD = torch.stack([torch.stack([k[0], v[0]]) for k, v in pairs or ()]).permute(3, 0, 1, 2, 4).float()
    if init == "random":
        rows_PL2GD = torch.randn_like(rows_PL2GD) * rows_PL2GD.std(dim=(0, 3, 4), keepdim=True, correction=0)
    return rows_PL2GD.reshape(count, -1)


class SoftPrompt(FrozenBase):
    """Base of the three: freezes the model (a new classification head aside) and trains what stands before every document."""

    tokens: Annotated[int, Field(ge=0, le=1000)] = 20
    """Virtual tokens before every document (0: off; 5 to 100 is usual)."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        needs=frozenset({"training"}),
        gives=frozenset({"adapter", "virtual_prompt"}),
        exclusive=frozenset({"adapter"}),
        conflicts={
            "head_only": ("one trains only the head, the other what stands before the text", "remove one of the two"),
            "frozen_layers": ("the whole model is frozen already", "remove the technique that freezes layers"),
            "rates": (
                "what trains lies below all layers, so there is one rate",
                "remove the technique that sets rates by depth",
            ),
        },
    )
    off: ClassVar[Mapping[str, Any]] = {"tokens": 0}
    claim: ClassVar[str] = "the virtual prompt moved and the base did not"

    _start: Tensor | None = PrivateAttr(None)

    @abstractmethod
    def make(self, model: Any) -> VirtualPrompt:
        """The untrained prompt for a ``LanguageModel``."""

    def edit(self, model: Any) -> Any:
        """Put the prompt before the model. Raises RecipeError for a model that cannot take one."""
        if self.tokens == 0:
            return model
        if model.peft is not None or model.virtual is not None:
            raise RecipeError(f"`{self.use}` needs a model without an adapter, and this one has one", fix="give the base model")
        self._refuse_structure(model)
        if model.longest is not None and self.tokens >= model.longest:
            raise RecipeError(
                f"`{self.use}`: {self.tokens} virtual tokens leave no room in the model's {model.longest} positions",
                where="techniques",
                fix="use fewer `tokens`",
            )
        model.virtual = self.make(model).to(model.device)
        model.pretrained.requires_grad_(False)  # what follows in the chain sees at once that the base is frozen
        return model

    def _refuse_structure(self, model: Any) -> None:
        if model.kind != "causal":
            why = "an encoder looks both ways, so what stands before a text cannot be shared between the documents of a row"
            raise RecipeError(f"`{self.use}` needs a causal model", where="model", why=why, fix="use `lora`, or a causal model")
        if row_width("keys", model.backbone) == 0:
            why = "its attention cannot be packed, or its layers keep keys and values of different shapes"
            raise RecipeError(f"`{self.use}` does not fit {model.config.model_type}", where="model", why=why, fix="use `lora`")

    def groups(self, model: Any) -> list[Group]:
        """The prompt trains without decay (zero is no natural place for it), a class head trains, all else does not."""
        if self.tokens == 0:
            return []
        names = frozenset(model.parameters_by_name())
        prompt = frozenset(name for name in names if name.startswith(PREFIX))
        head = class_head(names) if model.head_kind == "class" else frozenset[str]()
        table = frozenset({f"{PREFIX}embedding"})
        return [
            Group(names - prompt - head, trainable=False),
            Group(prompt | head, trainable=True),
            Group(table, weight_decay=0.0),
        ]

    def begin(self, model: Any, parameters: Parameters) -> None:
        """Take checksums of the frozen weights, and keep how the prompt starts (on resume it is drawn again from the seed)."""
        if self.tokens > 0:
            super().begin(model, parameters)
            self._start = model.virtual.rows().detach().clone()

    def finish(self, model: Any) -> Any:
        """Compare the base with its checksums and measure the way of the prompt, then drop what it was made with."""
        if self._start is not None:
            model = super().finish(model)
            model.virtual.settle()
        return model

    def distance(self, model: Any) -> float:
        """Distance of the prompt from its start over its size."""
        assert self._start is not None
        return total_norm([model.virtual.rows() - self._start]) / max(total_norm([self._start]), 1e-30)

    def detail(self) -> str:
        """How long the prompt is."""
        return f"{self.tokens} virtual tokens"


class WordPrompt(SoftPrompt):
    """Base of prompts that start as words."""

    init: Init = "vocabulary"
    """How they start: as common words drawn at random, as the words of `text`, or as noise of the same spread."""
    text: Annotated[str, Field(max_length=10_000)] | None = None
    """What they say at the start (with `init: text`): a description of the task; repeated or cut to the number of tokens."""

    @model_validator(mode="after")
    def _text_when_asked(self) -> Self:
        if (self.init == "text") != bool(self.text and self.text.strip()):
            missing = "" if self.text else ": say which text to start from"
            raise ValueError(f"`text` and `init: text` belong together{missing}")
        return self
