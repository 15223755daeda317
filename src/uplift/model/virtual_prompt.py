"""A virtual prompt: trained rows that stand before every document, as embeddings of virtual tokens or as keys and values.

It is computed once per row of packed documents and shared by all of them, which gives what prepending it to each document
would give. Saved in PEFT's own format beside an unchanged model.

Shapes: P virtual tokens, E embedding width, W width of a row, G key/value heads, d head width, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft import PrefixTuningConfig, PromptTuningConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from uplift.core.errors import ModelError, Place
from uplift.model.attention import KeyValues
from uplift.model.backbone import Backbone, evaluating, word_embedding
from uplift.model.files import read_json

PREFIX = "virtual."
"""What the names of its parameters begin with."""
KINDS: dict[str, Literal["tokens", "keys"]] = {"PROMPT_TUNING": "tokens", "P_TUNING": "tokens", "PREFIX_TUNING": "keys"}
"""PEFT's methods that only put something before the text."""
WEIGHTS = "prompt_embeddings"
PEFT_HEADS = ("score", "classifier")
"""Class heads by the names under which PEFT looks for them in an adapter's file."""


class VirtualPrompt(nn.Module):
    """``tokens``: rows are embeddings (P, E). ``keys``: rows are (P, layers * 2 * G * d), a key and a value for each layer.

    During training the rows may come out of an ``encoder`` over ``embedding``, added to ``start`` (P, W) when there is one.
    ``heads``: G, for ``keys`` alone.
    """

    embedding: nn.Parameter
    start: Tensor | None

    def __init__(
        self,
        kind: Literal["tokens", "keys"],
        embedding: Tensor,
        *,
        heads: int = 0,
        encoder: nn.Module | None = None,
        start: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.kind, self.heads, self.encoder = kind, heads, encoder
        self.embedding = nn.Parameter(embedding)
        self.register_buffer("start", start)

    @property
    def length(self) -> int:
        """P."""
        return len(self.embedding)

    def rows(self) -> Tensor:
        """The prompt itself (P, W)."""
        made = self.embedding if self.encoder is None else cast(Tensor, self.encoder(self.embedding))
        return made if self.start is None else self.start + made

    def key_values(self, backbone: Backbone) -> KeyValues | None:
        """What documents attend to, for every layer; None when there are no virtual tokens. Gradients reach the rows."""
        if self.length == 0:
            return None
        rows = self.rows()
        if self.kind == "keys":
            pairs = rows.view(self.length, -1, 2, self.heads, rows.shape[1] // (len(backbone.layers) * 2 * self.heads))
            return [(key[None], value[None]) for key, value in pairs.permute(1, 2, 3, 0, 4)]
        found = backbone.keys_and_values(rows[None], torch.arange(self.length, device=rows.device)[None])
        if found is None:
            raise ModelError("this model cannot share a virtual prompt between documents", fix="use another model")
        return found

    def check_room(self, lengths: Sequence[int], before: int, longest: int | None) -> None:
        """Raise ModelError when a document does not fit behind the prompt; ``longest``: positions that it leaves."""
        needed = max(lengths) + before
        if longest is not None and needed > longest:
            raise ModelError(
                f"a sample of {needed} tokens does not fit behind {self.length} virtual tokens",
                where="train.max_length",
                why=f"the model has {longest + self.length} positions",
                fix=f"set `train.max_length: {longest}`",
            )

    @torch.no_grad()
    def settle(self) -> None:
        """Keep the rows and drop what they were made with."""
        self.embedding = nn.Parameter(self.rows().detach().clone())
        self.encoder = self.start = None

    def save(self, directory: Path, backbone: Backbone, task: str) -> None:
        """Write a folder that plain PEFT loads; ``task`` is PEFT's name of what the model does.

        PEFT wants a class head there as well; the one that counts is in the model's own files.
        """
        config: PrefixTuningConfig | PromptTuningConfig
        rows = self.rows().detach().cpu().clone().contiguous()
        layers = len(backbone.layers)
        form: dict[str, Any] = {
            "task_type": task,
            "num_layers": layers,
            "num_transformer_submodules": 1,
            "inference_mode": True,
        }
        if self.kind == "keys":
            config = PrefixTuningConfig(token_dim=rows.shape[1] // (2 * layers), num_attention_heads=self.heads, **form)
        else:
            config = PromptTuningConfig(token_dim=rows.shape[1], **form)
        config.num_virtual_tokens = self.length
        config.save_pretrained(str(directory))
        heads = {n: p for n, p in backbone.pretrained.named_parameters() if n.partition(".")[0] in PEFT_HEADS}
        head = {f"base_model.{name}": tensor.detach().cpu().clone().contiguous() for name, tensor in heads.items()}
        save_file({WEIGHTS: rows, **head}, directory / "adapter_model.safetensors", metadata={"format": "pt"})


def is_virtual_prompt(folder: Path) -> bool:
    """Whether a saved adapter is one."""
    return read_json(folder / "adapter_config.json").get("peft_type") in KINDS


def read_virtual_prompt(folder: Path, backbone: Backbone) -> VirtualPrompt:
    """The prompt that PEFT or ``VirtualPrompt.save`` wrote, frozen. Raises ModelError when it does not fit the model."""
    settings = read_json(folder / "adapter_config.json")
    kind, where = KINDS[settings["peft_type"]], Place(file=str(folder))
    fix = "use the model it was made for"
    if settings.get("num_transformer_submodules") not in (None, 1):
        raise ModelError("this virtual prompt is for an encoder-decoder", where=where, fix=fix)
    table = load_file(folder / "adapter_model.safetensors").get(WEIGHTS)
    if table is None or table.ndim != 2:
        raise ModelError(
            "the virtual prompt cannot be read", where=where, why=f"it has no table `{WEIGHTS}`", fix="save it again"
        )
    width = row_width(kind, backbone)
    if table.shape[1] != width:
        why = f"its rows have {table.shape[1]} numbers, and this model takes {width or 'no such prompt'}"
        raise ModelError("the virtual prompt is for another model", where=where, why=why, fix=fix)
    heads = key_shape(backbone)[0] if kind == "keys" else 0
    return VirtualPrompt(kind, table.to(word_embedding(backbone.pretrained).weight), heads=heads).requires_grad_(False)


def row_width(kind: Literal["tokens", "keys"], backbone: Backbone) -> int:
    """W of this model; 0 when it cannot share a prefix, or keeps keys and values that differ in shape between layers."""
    heads, width = key_shape(backbone)
    if kind == "keys" or heads * width == 0:
        return len(backbone.layers) * 2 * heads * width
    return int(word_embedding(backbone.pretrained).weight.shape[1])


@torch.no_grad()
def key_shape(backbone: Backbone) -> tuple[int, int]:
    """(G, d) of all layers; (0, 0) when the model cannot share a prefix or its layers differ.

    A model without weights (``meta``) is taken at its configuration's word.
    """
    embedding = word_embedding(backbone.pretrained)
    device = embedding.weight.device
    if device.type == "meta":
        config: Any = backbone.module.config.get_text_config()
        heads = int(config.num_attention_heads)
        width = getattr(config, "head_dim", None) or int(config.hidden_size) // heads
        return int(getattr(config, "num_key_value_heads", None) or heads), int(width)
    with evaluating(backbone.pretrained):
        one = torch.zeros((1, 1), dtype=torch.long, device=device)
        pairs = backbone.keys_and_values(embedding(one), one)
    shapes = {(state.shape[1], state.shape[3]) for pair in pairs or () for state in pair}
    return shapes.pop() if len(shapes) == 1 else (0, 0)


def joined(first: KeyValues | None, second: KeyValues | None) -> KeyValues | None:
    """One prefix behind the other."""
    if first is None or second is None:
        return first if second is None else second
    both = zip(first, second, strict=True)
    return [(torch.cat([a[0], b[0].to(a[0])], dim=2), torch.cat([a[1], b[1].to(a[1])], dim=2)) for a, b in both]
