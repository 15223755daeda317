"""The two heads over hidden states: the language head as plain numbers, the class head by the architecture's own code.

Shapes: T tokens of a row, N documents, D hidden width, V vocabulary, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from uplift.core.errors import ModelError
from uplift.model.backbone import backbone_of, pad, padding_mask


def language_weight(pretrained: PreTrainedModel) -> Tensor:
    """(V, D) weight of the language head, with an adapter's change on it if there is one. Raises ModelError without a head."""
    head = cast(Any, pretrained).get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(pretrained).__name__} has no language head", fix="open it with a classification head")
    base = getattr(head, "base_layer", head)
    weight: Tensor = base.weight
    if base is not head and not head.merged and not head.disable_adapters:
        for adapter in head.active_adapters:
            weight = weight + head.get_delta_weight(adapter)
    return weight


def language_bias(pretrained: PreTrainedModel) -> Tensor | None:
    """(V,) bias of the language head."""
    head = cast(Any, pretrained).get_output_embeddings()
    return getattr(getattr(head, "base_layer", head), "bias", None)


def language_scale(config: Any) -> float:
    """What logits are multiplied by: Cohere's ``logit_scale``, one over Granite's ``logits_scaling``."""
    settings = config.get_text_config()
    return float(getattr(settings, "logit_scale", None) or 1.0) / float(getattr(settings, "logits_scaling", None) or 1.0)


def language_softcap(config: Any) -> float | None:
    """Gemma's bound on logits: ``cap * tanh(logits / cap)``."""
    cap = getattr(config.get_text_config(), "final_logit_softcapping", None)
    return float(cap) if cap is not None else None


def language_logits(pretrained: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits (..., V) of hidden states (..., D): for tests and short sequences; training never builds them whole."""
    logits = nn.functional.linear(hidden, language_weight(pretrained), language_bias(pretrained))
    logits = logits * language_scale(pretrained.config)
    cap = language_softcap(pretrained.config)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def class_logits(pretrained: PreTrainedModel, hidden: Tensor, lengths: Sequence[int]) -> Tensor:
    """(N, C) from packed hidden states (1, T, D), pooled and scored as the architecture does.

    Decoders score the last token. Encoders run their own ``ForSequenceClassification`` code, with the backbone replaced by
    the hidden states that are there already.
    """
    score = getattr(pretrained, "score", None)
    if score is not None:
        last = torch.tensor(list(lengths), device=hidden.device).cumsum(0) - 1
        return score(hidden[0, last])  # type: ignore[no-any-return]
    padded, mask = pad(hidden, lengths), padding_mask(lengths, hidden.device)
    with _given_hidden(pretrained, padded):
        return pretrained(inputs_embeds=padded, attention_mask=mask).logits  # type: ignore[no-any-return]


class _Given(nn.Module):
    """Stands in for a backbone: returns hidden states that were computed before, pooled by the backbone's own pooler."""

    def __init__(self, backbone: nn.Module, hidden: Tensor) -> None:
        super().__init__()
        object.__setattr__(self, "backbone", backbone)  # not a child
        object.__setattr__(self, "hidden", hidden)

    def forward(self, *arguments: Any, **options: Any) -> BaseModelOutputWithPooling:
        """The given hidden states (N, L, D) and their pooled form (N, D)."""
        backbone, hidden = self.__dict__["backbone"], self.__dict__["hidden"]
        pooler = getattr(backbone, "pooler", None)
        if isinstance(pooler, nn.Linear):  # ALBERT keeps the parts of its pooler side by side
            pooled = backbone.pooler_activation(pooler(hidden[:, 0]))
        else:
            pooled = pooler(hidden) if pooler is not None else None
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)


@contextmanager
def _given_hidden(pretrained: PreTrainedModel, hidden: Tensor) -> Iterator[None]:
    backbone = backbone_of(pretrained)
    prefix = pretrained.base_model_prefix
    pretrained._modules[prefix] = _Given(backbone, hidden)
    try:
        yield
    finally:
        pretrained._modules[prefix] = backbone


def initialise(parameters: dict[str, nn.Parameter], seed: int) -> None:
    """Fill new head parameters from ``seed`` alone: weights normal with deviation 0.02, vectors zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in sorted(parameters):
            parameter = parameters[name]
            values = torch.zeros(parameter.shape)
            if parameter.dim() > 1:
                values.normal_(0.0, 0.02, generator=generator)
            parameter.copy_(values)
