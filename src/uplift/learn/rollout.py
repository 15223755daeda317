"""Answers that a model draws while it is trained: batched, with a key/value cache, each row's luck its own.

What a row draws depends on its seed and its prompt alone, so batches can be cut anywhere and runs continued (up to the last
digits of the probabilities). Shapes: B prompts of a batch (padded at the left), L tokens, D hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from uplift.core.errors import ModelError
from uplift.model.backbone import cache_of, evaluating
from uplift.model.language_model import LanguageModel


@torch.no_grad()
def rollout(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    ends: frozenset[int],
    max_new_tokens: int,
    seeds: Sequence[int],
    temperature: float = 1.0,
) -> list[list[int]]:
    """The tokens that follow each prompt, the one of ``ends`` that closes it included; ``temperature`` 0: the likeliest ones.

    Dropout is off. Raises ModelError for a model that cannot go on from what it has read.
    """
    if not {"past_key_values", "use_cache"} <= model.layout.arguments:
        raise ModelError("this model cannot write token by token", fix="use a causal model that keeps keys and values")
    longest, device = max(map(len, prompts)), model.device
    padded = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    seen = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    step_BL, seen_BL = torch.tensor(padded, device=device), torch.tensor(seen, device=device)
    luck = [torch.Generator().manual_seed(seed) for seed in seeds]
    written: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    with evaluating(model.pretrained):
        cache = cache_of(model.virtual_prefix(), len(prompts))
        seen_BL = F.pad(seen_BL, (model.virtual_length, 0), value=1)
        for _ in range(max_new_tokens):
            places_BL = (seen_BL.cumsum(1) - 1).clamp_min(0)[:, -step_BL.shape[1] :]
            options = {"position_ids": places_BL + model.layout.offset} if "position_ids" in model.layout.arguments else {}
            hidden_BLD = model.backbone.module(
                input_ids=step_BL, attention_mask=seen_BL, past_key_values=cache, use_cache=True, **options
            )[0]
            chosen = draw(model.logits(hidden_BLD[:, -1]).double().cpu(), temperature, luck)
            for row in sorted(open_rows):
                written[row].append(chosen[row])
                if chosen[row] in ends:
                    open_rows.discard(row)
            if not open_rows:
                break
            step_BL = torch.tensor(chosen, device=device)[:, None]
            seen_BL = F.pad(seen_BL, (0, 1), value=1)
    return written


def draw(scores_BV: Tensor, temperature: float, luck: Sequence[torch.Generator]) -> list[int]:
    """One token for each row, by inverting the cumulative distribution at the row's own random number."""
    if temperature == 0:
        return [int(place) for place in scores_BV.argmax(-1)]
    sums_BV = (scores_BV / temperature).softmax(-1).cumsum(-1)
    numbers = [torch.rand((), generator=each, dtype=torch.float64) for each in luck]
    places = [int(torch.searchsorted(sums, number * sums[-1])) for sums, number in zip(sums_BV, numbers, strict=True)]
    return [min(place, scores_BV.shape[1] - 1) for place in places]
