"""A masked language model that fills gaps of texts with whole words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM

from uplift.core.errors import ModelError
from uplift.core.model_section import Model
from uplift.model.neighbours import whole_words
from uplift.model.opening import open_asked

BATCH = 16
LONGEST = 512


class GapFiller:
    """Opens the model ``spec`` names. Raises ModelError, ResourceError."""

    def __init__(self, spec: Model, base_dir: Path, device: torch.device) -> None:
        self._model, self._tokenizer = open_asked(spec, AutoModelForMaskedLM, base_dir, device)
        if self._tokenizer.mask_token_id is None:
            raise ModelError("the tokenizer has no token for a gap", fix="use a masked language model such as BERT")
        words = whole_words(self._tokenizer)
        self._words, self._ids = list(words), torch.tensor(list(words.values()), device=device)
        limits = (self._tokenizer.model_max_length, getattr(self._model.config, "max_position_embeddings", LONGEST), LONGEST)
        self._longest = min(int(limit) for limit in limits)

    @property
    def gap(self) -> str:
        """What stands in a text for a gap."""
        return str(self._tokenizer.mask_token)

    def best(self, texts: Sequence[str], count: int) -> list[list[list[tuple[float, str]]]]:
        """For each gap of each text the ``count`` likeliest words with ln p, best first; gaps beyond the longest text are left
        out."""
        found: list[list[list[tuple[float, str]]]] = []
        for begin in range(0, len(texts), BATCH):
            found += self._best(texts[begin : begin + BATCH], count)
        return found

    @torch.no_grad()
    def _best(self, texts: Sequence[str], count: int) -> list[list[list[tuple[float, str]]]]:
        batch = self._tokenizer(list(texts), padding=True, truncation=True, max_length=self._longest, return_tensors="pt")
        batch = batch.to(self._ids.device)
        rows, places = torch.nonzero(batch["input_ids"] == self._tokenizer.mask_token_id, as_tuple=True)
        logits_GV = self._model(**batch).logits[rows, places].float()
        log_p, best = logits_GV.log_softmax(-1)[:, self._ids].topk(min(count, len(self._words)), dim=-1)
        found: list[list[tuple[float, str]]] = [
            [(value, self._words[place]) for value, place in zip(values, chosen, strict=True)]
            for values, chosen in zip(log_p.tolist(), best.tolist(), strict=True)
        ]
        owners = rows.tolist()
        return [[gap for owner, gap in zip(owners, found, strict=True) if owner == row] for row in range(len(texts))]
