"""A sequence-to-sequence model that turns texts into others; what a text becomes depends on its own seed, not on its batch.

Shapes: B texts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForSeq2SeqLM
from transformers.modeling_outputs import BaseModelOutput

from uplift.core.errors import ModelError
from uplift.core.model_section import Model
from uplift.core.values import Generation
from uplift.learn.rollout import draw
from uplift.model.opening import open_asked

BATCH = 16


class Translator:
    """Opens the model ``spec`` names. Raises ModelError, ResourceError."""

    def __init__(self, spec: Model, base_dir: Path, device: torch.device) -> None:
        self._model, self._tokenizer = open_asked(spec, AutoModelForSeq2SeqLM, base_dir, device)
        settings = (self._model.generation_config, self._model.config)
        starts = [getattr(each, name, None) for name in ("decoder_start_token_id", "bos_token_id") for each in settings]
        start = next((token for token in starts if token is not None), None)
        ends = next((e for each in settings if (e := getattr(each, "eos_token_id", None)) is not None), None)
        if start is None or ends is None:
            raise ModelError("the model does not say how a text begins and ends", fix="use another translation model")
        self._ends = frozenset(ends if isinstance(ends, list) else [ends])
        first = getattr(self._model.generation_config, "forced_bos_token_id", None)  # a language, in models of many
        self._start = [int(start)] if first is None else [int(start), int(first)]
        self._device = device

    def write(self, texts: Sequence[str], seeds: Sequence[int], max_new_tokens: int, temperature: float) -> list[Generation]:
        """What each text becomes; ``temperature`` 0: the likeliest words."""
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))  # neighbours of like length need little padding
        found: dict[int, Generation] = {}
        for begin in range(0, len(order), BATCH):
            part = order[begin : begin + BATCH]
            written = self._write([texts[i] for i in part], [seeds[i] for i in part], max_new_tokens, temperature)
            found |= dict(zip(part, written, strict=True))
        return [found[index] for index in range(len(texts))]

    @torch.no_grad()
    def _write(self, texts: list[str], seeds: list[int], most: int, temperature: float) -> list[Generation]:
        longest = min(int(self._tokenizer.model_max_length), 2**14)
        batch = self._tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt").to(self._device)
        model, seen = cast(Any, self._model), batch["attention_mask"]
        encoded = BaseModelOutput(model.get_encoder()(input_ids=batch["input_ids"], attention_mask=seen).last_hidden_state)
        luck = [torch.Generator().manual_seed(seed) for seed in seeds]
        step = torch.tensor([self._start] * len(texts), device=self._device)
        tokens: list[list[int]] = [[] for _ in texts]
        still, cache = set(range(len(texts))), None
        for _ in range(most):
            out = model(
                encoder_outputs=encoded, attention_mask=seen, decoder_input_ids=step, past_key_values=cache, use_cache=True
            )
            cache, scores_BV = out.past_key_values, out.logits[:, -1].double().cpu()
            padding = self._tokenizer.pad_token_id
            if padding is not None and padding not in self._ends:
                scores_BV[:, padding] = -torch.inf
            chosen = draw(scores_BV, temperature, luck)
            for row in sorted(still):
                tokens[row].append(chosen[row])
                if chosen[row] in self._ends:
                    still.discard(row)
            if not still:
                break
            step = torch.tensor(chosen, device=self._device)[:, None]
        return [
            Generation(
                str(self._tokenizer.decode(own, skip_special_tokens=True)),
                len(own),
                int(seen[row].sum()),
                "length" if row in still else "stop",
            )
            for row, own in enumerate(tokens)
        ]
