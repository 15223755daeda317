"""Attention inside each document of a packed row: no padding, no mask, equal to every document alone.

Registered with transformers as ``uplift_packed``. A forward that passes ``documents=`` gets packed attention; one that
does not (generation with a key/value cache) gets transformers' own ``sdpa``. Nothing is kept between calls, so threads,
activation checkpointing and several models at once cannot mix up their documents.

Shapes: T tokens of a row, H query heads, G key/value heads, d head width, L tokens of a document, P tokens of a shared
prefix, n documents of a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

PACKED = "uplift_packed"
KeyValues = Sequence[tuple[Tensor, Tensor]]
"""Keys and values (1, G, P, d) of a prefix, one pair per layer."""

_LONGEST_STEP = 128
WATCH = "uplift_watch"
"""Attribute of an attention module: a function that is given what each packed call compares, as ``Attended``."""


@dataclass(frozen=True)
class Documents:
    """How a packed row divides: ``lengths`` sum to T. ``offsets``: (N + 1,) int32 starts, on the accelerator only.

    ``prefix`` is attended to by every document before its own tokens. ``windows``, when given, collects the sliding window
    of each attention call (None: none): a way to see that attention came here at all.
    """

    lengths: tuple[int, ...]
    offsets: Tensor | None = None
    longest: int = 0
    prefix: KeyValues | None = None
    windows: list[int | None] | None = None

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device, prefix: KeyValues | None = None) -> Documents:
        """Documents of these lengths, with what the accelerator's kernel needs."""
        if device.type != "cuda":
            return cls(tuple(lengths), prefix=prefix)
        starts = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        # Only a bound for the kernel: rounded up, so that a compiled graph is not rebuilt for every row.
        longest = -(-max(lengths) // _LONGEST_STEP) * _LONGEST_STEP
        return cls(tuple(lengths), starts.to(device, non_blocking=True), longest, prefix)


@dataclass(frozen=True)
class Rule:
    """How scores are made and what may be seen. ``scaling`` None: 1 / sqrt(d); ``window``: tokens back, with the own one."""

    causal: bool
    window: int | None = None
    scaling: float | None = None
    softcap: float | None = None
    dropout: float = 0.0


@dataclass(frozen=True)
class Attended:
    """What one call compared: queries (1, H, T, d), keys and values (1, G, T, d) of a packed row, positions applied."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    rule: Rule


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    documents: Documents | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query (1, H, T, d), key and value (1, G, T, d) -> (1, T, H, d).

    ``attention_mask`` is ignored when ``documents`` are given: their lengths say all. Raises NotImplementedError for
    variants that change the formula (learned sinks, position biases); such models run padded.
    """
    causal = is_causal if is_causal is not None else bool(getattr(module, "is_causal", True))
    if documents is None:
        return _plain(module, query, key, value, attention_mask, dropout, scaling, causal, softcap, others), None
    if any(others.get(name) is not None for name in ("s_aux", "position_bias", "cache")):
        raise NotImplementedError("this attention variant has no packed form")
    if documents.windows is not None:
        documents.windows.append(sliding_window)
    rule = Rule(causal, sliding_window, scaling, softcap, dropout)
    watch = getattr(module, WATCH, None)
    if watch is not None:
        watch(Attended(query, key, value, rule))
    if _kernel_fits(query, documents, dropout, softcap):
        return _kernel(query, key, value, documents, causal, sliding_window, scaling), None
    prefix = documents.prefix[int(module.layer_idx)] if documents.prefix is not None else None  # type: ignore[arg-type]
    outputs = [
        _run(q, k, v, length, prefix, rule)
        for length, q, k, v in zip(*_runs(documents.lengths, query, key, value), strict=True)
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1), None


def _runs(lengths: tuple[int, ...], *states: Tensor) -> Iterator[Sequence[Any]]:
    """Neighbours of equal length as one piece: ([L of each piece], pieces of each state along T).

    Measured on a CPU: a call per run is 0.8 of a call per document for fixed blocks and equal for ragged ones; gathering
    equal lengths from all over the row costs more than it saves.
    """
    runs = [(length, length * len(list(group))) for length, group in groupby(lengths)]
    yield [length for length, _ in runs]
    for state in states:
        yield torch.split(state, [size for _, size in runs], dim=2)


def _run(query: Tensor, key: Tensor, value: Tensor, length: int, prefix: tuple[Tensor, Tensor] | None, rule: Rule) -> Tensor:
    """Attention inside each of n equally long documents: (1, H, n L, d) -> (1, n L, H, d)."""
    total, count = query.shape[2], query.shape[2] // length
    q, k, v = (x.transpose(1, 2).reshape(count, length, *x.shape[1::2]).transpose(1, 2) for x in (query, key, value))
    if prefix is not None:
        before = [x.to(k.dtype).expand(count, -1, -1, -1) for x in prefix]
        k, v = torch.cat([before[0], k], dim=2), torch.cat([before[1], v], dim=2)
    mask = _mask(length, k.shape[2], rule, q.device)
    if rule.softcap is not None:
        out = _softcapped(q, k, v, mask, rule)
    else:
        plainly_causal = rule.causal and mask is None
        out = nn.functional.scaled_dot_product_attention(
            q, k, v, mask, rule.dropout, plainly_causal, scale=rule.scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
    return out.transpose(1, 2).reshape(1, total, out.shape[1], -1)


def _mask(queries: int, keys: int, rule: Rule, device: torch.device) -> Tensor | None:
    """(L, P + L) true where a query may look, aligned at the end; None when ``is_causal`` (or nothing) says the same."""
    windowed = rule.window is not None and keys > rule.window
    if not rule.causal or (queries == keys and not windowed and rule.softcap is None):
        return None
    mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return mask.triu(keys - queries - rule.window + 1) if windowed and rule.window else mask


def scores_of(query: Tensor, key: Tensor, rule: Rule) -> Tensor:
    """(..., H, L, P + L): how well queries (..., H, L, d) fit keys (..., G, P + L, d), scaled and bent, nothing hidden yet."""
    k = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    scale = rule.scaling if rule.scaling is not None else query.shape[-1] ** -0.5
    scores = query @ k.transpose(-1, -2) * scale
    return scores if rule.softcap is None else rule.softcap * torch.tanh(scores / rule.softcap)


def _softcapped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rule: Rule) -> Tensor:
    """Attention whose scores are bent to ``softcap * tanh(scores / softcap)`` (Gemma 2), written out: no kernel has it."""
    scores = scores_of(query, key, rule)
    v = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    chances = nn.functional.dropout(scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype), rule.dropout)
    return chances @ v


def _plain(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    causal: bool,
    softcap: float | None,
    others: dict[str, Any],
) -> Tensor:
    """Attention of an ordinary batch, as transformers does it, softcap included."""
    if softcap is None:
        return sdpa_attention_forward(module, query, key, value, mask, dropout, scaling, causal, **others)[0]
    rule = Rule(causal and mask is None, None, scaling, softcap, dropout)
    if mask is None:
        mask = _mask(query.shape[2], key.shape[2], rule, query.device)
    return _softcapped(query, key, value, mask, rule).transpose(1, 2).contiguous()


def _kernel_fits(query: Tensor, documents: Documents, dropout: float, softcap: float | None) -> bool:
    """Whether the variable-length flash kernel can do it: half precision on Ampere or newer, nothing unusual asked."""
    unusual = dropout > 0 or softcap is not None or documents.prefix is not None or documents.offsets is None
    if unusual or query.dtype not in (torch.float16, torch.bfloat16) or query.shape[-1] > 256 or query.shape[-1] % 8:
        return False
    return torch.cuda.get_device_capability(query.device) >= (8, 0)


def _kernel(
    query: Tensor, key: Tensor, value: Tensor, documents: Documents, causal: bool, window: int | None, scaling: float | None
) -> Tensor:
    """All documents of the row in one call of torch's flash attention: (1, T, H, d)."""
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    reach = (-1, -1) if not causal else (-1, 0) if window is None else (window - 1, 0)
    starts, longest = cast(Tensor, documents.offsets), documents.longest
    out = varlen_attn(
        q, k, v, starts, starts, longest, longest, scale=scaling, window_size=reach, enable_gqa=q.shape[1] != k.shape[1]
    )
    return cast(Tensor, out)[None]


AttentionInterface.register(PACKED, packed_attention)
# For forwards without documents the mask must be what `sdpa` expects.
AttentionMaskInterface.register(PACKED, sdpa_mask)
