"""The model behind one seam: ``embed -> hidden -> head``, whatever its architecture. Everything else talks to this class.

Shapes: T tokens of a packed row, N documents in it, E embedding width (D for most), D hidden width, V vocabulary, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from uplift.core.errors import ModelError
from uplift.model import heads
from uplift.model.attention import KeyValues
from uplift.model.backbone import Backbone, Layout, evaluating, word_embedding
from uplift.model.bottleneck import FOLDER, bottlenecks, save_bottlenecks
from uplift.model.grid import Grid
from uplift.model.packed import Packed, save_packed
from uplift.model.quiet import quiet
from uplift.model.taps import AttentionTaps, Taps
from uplift.model.virtual_prompt import PREFIX, VirtualPrompt, joined

CONTEXT = 32_768
"""Longest context where the model's configuration names none."""
ADAPTER = "adapter"
"""Folder of an unmerged PEFT adapter inside a saved model."""


ADDED = tuple(
    f".{part}" for part in ("lora_", "ranknum.", "ia3_", "original_module.", "vera_", "oft_", "boft_", "hra_", "bottleneck.")
)
"""Beginnings of the parts of a tensor's name that say an adapter added it."""


def is_adapter_tensor(name: str) -> bool:
    """Whether an adapter added this tensor to the model."""
    return any(part in f".{name}" for part in ADDED)


class SavedAdapter(Protocol):
    """An adapter that was merged into the weights and can still be written apart from them."""

    def save(self, directory: Path) -> None:
        """Write a folder that plain PEFT loads."""


class LanguageModel(nn.Module):
    """A transformers model with its tokenizer; rows are packed and documents in a row never see each other.

    ``pretrained`` is a plain ``*ForCausalLM`` or ``*ForSequenceClassification``, changed in place by PEFT when there is an
    adapter. ``virtual``: a prompt of trained rows that every document sees before itself. ``identity`` holds the hashes that
    name these weights; ``notes`` what was decided while opening.
    """

    pretrained: PreTrainedModel
    peft: PeftModel | None
    virtual: VirtualPrompt | None

    def __init__(
        self,
        pretrained: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        layout: Layout,
        *,
        kind: Literal["causal", "encoder"],
        head_kind: Literal["language", "class"],
        labels: Sequence[str] = (),
        identity: dict[str, str] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.pretrained, self.tokenizer, self.peft = pretrained, tokenizer, None
        self.merged_adapter: SavedAdapter | None = None
        self.virtual = None
        self.untrained = False
        """The weights are random: nothing has been learned yet."""
        self.packed: Packed | None = None  # the final weights as integers: what is then written in place of floats
        self.grid: Grid | None = None  # what the weights were rounded to, now or before they were opened
        self.taps: Taps | None = None
        self.attention_taps: AttentionTaps | None = None
        self.kind, self.head_kind, self.labels = kind, head_kind, tuple(labels)
        self.identity, self.notes = dict(identity or {}), tuple(notes)
        self.layout = layout
        self.lineage: tuple[dict[str, Any], ...] = ()
        """Changes of the structure since the model was opened, the oldest first."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "peft":  # a view of `pretrained`, not a second child with the same parameters
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    # -- the seam ----------------------------------------------------------------------------------------------------
    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings (1, T, E) of ids (1, T); positions, types and norms are added inside ``hidden``."""
        return cast(Tensor, word_embedding(self.pretrained)(ids))

    def hidden(
        self,
        embeddings: Tensor,
        positions: Tensor,
        lengths: Sequence[int],
        start: int = 0,
        prefix: KeyValues | None = None,
    ) -> Tensor:
        """Hidden states (1, T, D) of a packed row after the final norm.

        ``start`` = k > 0: ``embeddings`` are the output of layer k, as ``layer_hidden`` gives it, and only later layers run.
        ``prefix``: keys and values from ``prompt_prefix`` that every document sees before itself; ``positions`` then count
        on from its length. Raises ModelError when a document is longer than learned positions allow.
        """
        prefix, positions = self._behind_virtual(positions, lengths, prefix)
        return self.backbone.run(embeddings, positions, lengths, start, prefix)

    @torch.no_grad()
    def layer_hidden(self, embeddings: Tensor, positions: Tensor, lengths: Sequence[int], stop: int, start: int = 0) -> Tensor:
        """Output (1, T, D) of layer ``stop`` without dropout or gradients; 0 gives the embeddings back.

        ``start`` = k > 0: ``embeddings`` are the output of layer k, and only the layers after it run.
        """
        if stop == start:
            return embeddings
        with evaluating(self.pretrained):
            prefix, positions = self._behind_virtual(positions, lengths, None)
            return self.backbone.run_to(embeddings, positions, lengths, stop, prefix, start)

    @torch.no_grad()
    def prompt_prefix(self, ids: Tensor) -> KeyValues | None:
        """Keys and values of a prompt (1, P) that many documents share; None when this model cannot share one."""
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        with evaluating(self.pretrained):
            virtual, positions = self._behind_virtual(positions, ids.shape[1:], None)
            return self.backbone.keys_and_values(self.embed(ids), positions, virtual)

    @torch.no_grad()
    def virtual_prefix(self) -> KeyValues | None:
        """Keys and values of the virtual prompt, without dropout or gradients; None when there is none."""
        with evaluating(self.pretrained):
            return None if self.virtual is None else self.virtual.key_values(self.backbone)

    def _behind_virtual(
        self, positions: Tensor, lengths: Sequence[int], prefix: KeyValues | None
    ) -> tuple[KeyValues | None, Tensor]:
        """``prefix`` behind the virtual prompt's keys and values, and positions that count on from its length."""
        if self.virtual is None:
            return prefix, positions
        self.virtual.check_room(lengths, prefix[0][0].shape[2] if prefix else 0, self.longest)
        return joined(self.virtual.key_values(self.backbone), prefix), positions + self.virtual.length

    def class_logits(self, hidden: Tensor, lengths: Sequence[int]) -> Tensor:
        """(N, C): the architecture's own pooling and classification head over packed hidden states (1, T, D)."""
        return heads.class_logits(self.pretrained, hidden, lengths)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., V): the language head over hidden states (..., D), scale and softcap included."""
        return heads.language_logits(self.pretrained, hidden)

    @property
    def head_weight(self) -> Tensor:
        """(V, D) weight of the language head."""
        return heads.language_weight(self.pretrained)

    @property
    def head_bias(self) -> Tensor | None:
        """(V,) bias of the language head."""
        return heads.language_bias(self.pretrained)

    @property
    def head_scale(self) -> float:
        """What the language head's logits are multiplied by."""
        return heads.language_scale(self.config)

    @property
    def head_softcap(self) -> float | None:
        """Bound of the language head's logits, ``cap * tanh(logits / cap)``."""
        return heads.language_softcap(self.config)

    def tap(self, layers: Iterable[int]) -> None:
        """From now on every ``ForwardPass`` keeps the outputs of these layers (1-based); none: no more."""
        if self.taps is not None:
            self.taps.close()
        wanted = list(layers)
        self.taps = Taps(self.layers, wanted, self.layout.packed) if wanted else None

    def tap_attention(self, layers: Iterable[int]) -> None:
        """From now on every ``ForwardPass`` keeps what the attention of these layers (1-based) compares; none: no more.

        Raises ModelError for a model whose documents cannot share a row: its attention is transformers' own.
        """
        wanted = list(layers)
        if wanted and not self.layout.packed:
            why = f"{type(self.pretrained).__name__} has attention of a kind that runs padded"
            raise ModelError("this model's attention cannot be looked at", why=why, fix="compare its hidden states instead")
        if self.attention_taps is not None:
            self.attention_taps.close()
        self.attention_taps = AttentionTaps(self.layers, wanted) if wanted else None

    # -- structure ---------------------------------------------------------------------------------------------------
    @property
    def backbone(self) -> Backbone:
        """The layers as a function."""
        return Backbone(self.pretrained, self.layout)

    @property
    def config(self) -> PreTrainedConfig:
        """transformers' configuration."""
        return self.pretrained.config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.pretrained.device

    @property
    def layers(self) -> list[nn.Module]:
        """The blocks from first to last."""
        return list(self.backbone.layers)

    @property
    def longest(self) -> int | None:
        """Most tokens of a document, where positions are learned; None: no hard limit."""
        return None if self.layout.longest is None else self.layout.longest - self.virtual_length

    @property
    def task_type(self) -> str:
        """What PEFT calls the model's task."""
        return "SEQ_CLS" if self.head_kind == "class" else "CAUSAL_LM"

    @property
    def virtual_length(self) -> int:
        """Virtual tokens before each document."""
        return 0 if self.virtual is None else self.virtual.length

    def depth(self, parameter_name: str) -> int:
        """Depth of a parameter named as in ``parameters_by_name``: 0 embeddings, 1..L layers, L + 1 final norm and head."""
        return 0 if parameter_name.startswith(PREFIX) else self.backbone.depth(parameter_name)

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """transformers' (and PEFT's) own names -> parameters; tied ones once. A virtual prompt's begin with ``virtual.``."""
        own = () if self.virtual is None else self.virtual.named_parameters(PREFIX.rstrip("."))
        return dict([*self.pretrained.named_parameters(), *own])

    # -- saving ------------------------------------------------------------------------------------------------------
    def save(self, directory: Path) -> None:
        """Write a folder that plain transformers loads (safetensors, tokenizer); an unmerged adapter goes to ``adapter/``.

        A model with ``packed`` weights is written as ``uplift.model.packed`` says.
        Meant as the ``write`` callback of ``storage.commit_directory``, which makes the result whole and durable.
        """
        with quiet():
            adapted = self.peft is not None or bool(bottlenecks(self.pretrained))
            if self.packed is None:
                self.pretrained.save_pretrained(directory, state_dict=self._plain_state() if adapted else None)
            else:
                save_packed(self.pretrained, self.packed, directory)
            save_bottlenecks(self.pretrained, directory / FOLDER)
            self.tokenizer.save_pretrained(directory)
            if self.peft is not None:
                self.peft.save_pretrained(str(directory / ADAPTER), safe_serialization=True)
            if self.virtual is not None:
                self.virtual.save(directory / ADAPTER, self.backbone, self.task_type)

    def _plain_state(self) -> dict[str, Tensor]:
        """The base model's tensors under their plain names, without what the adapter added."""
        state = {}
        for name, tensor in self.pretrained.state_dict().items():
            if not is_adapter_tensor(name):
                state[name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")] = tensor
        return state


def context_of(model: LanguageModel) -> int:
    """Tokens that the model can read at once, beside its virtual prompt."""
    settings = model.config.get_text_config()
    limit = model.layout.longest or getattr(settings, "max_position_embeddings", None) or CONTEXT
    return int(limit) - model.virtual_length
