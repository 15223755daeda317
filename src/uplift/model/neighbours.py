"""Words that stand near each other in a model's own input embeddings, and how near two texts are by the mean of theirs.

Shapes: W words, U words looked up, D embedding width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedTokenizerBase

from uplift.data.tokens import SafeTokenizer
from uplift.data.words import case_of, in_case
from uplift.model.language_model import LanguageModel

CHUNK = 8192
"""Vocabulary words compared at once."""
MARKS = ("\u0120", "\u2581")
"""What byte-level and sentencepiece vocabularies put before a token that begins a word."""


def whole_words(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Word -> id, of the alphabetic tokens that begin a word and are all of it."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    mark = next((mark for mark in MARKS if any(token and token.startswith(mark) for token in tokens)), "")
    found: dict[str, int] = {}
    for index, token in enumerate(tokens):
        if not token or token.startswith("##") or not token.startswith(mark):
            continue
        word = str(tokenizer.convert_tokens_to_string([token])).strip()
        if len(word) > 1 and word.isalpha():
            found.setdefault(word, index)
    return found


class Neighbours:
    """The alphabetic words that are one token of a model. Nearness says "used alike": antonyms can be neighbours."""

    def __init__(self, model: LanguageModel) -> None:
        self._model, self._tokenizer = model, SafeTokenizer(model.tokenizer)

    @cached_property
    def words(self) -> dict[str, int]:
        """Word -> id, of tokens that begin a word and are all of it."""
        return whole_words(self._model.tokenizer)

    def ids(self, text: str) -> list[int]:
        """Tokens of a text in the middle of another."""
        return self._tokenizer.content(text, continuing=True)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Characters that each of ``ids`` covers (empty when they cannot be told)."""
        offsets = self._tokenizer.content_offsets(text)
        return offsets if len(offsets) == len(self.ids(text)) else []

    @torch.no_grad()
    def means(self, texts: Sequence[str]) -> Tensor:
        """(U, D) mean input embedding of each text, of unit length (zero for a text without tokens)."""
        ids = [self.ids(text) for text in texts]
        sizes = torch.tensor([len(each) for each in ids])
        flat = torch.tensor([[token for each in ids for token in each]], dtype=torch.int64, device=self._model.device)
        owners = torch.repeat_interleave(torch.arange(len(ids)), sizes).to(self._model.device)
        embeddings = self._model.embed(flat)[0].float()
        return normalize(embeddings.new_zeros(len(ids), embeddings.shape[1]).index_add_(0, owners, embeddings), dim=1)

    def similar(self, original: str, texts: Sequence[str]) -> list[float]:
        """Cosine of each text's mean embedding with the original's, from 0 to 1."""
        if not texts:
            return []
        means = self.means([original, *texts])
        cosines: list[float] = (means[1:] @ means[0]).clamp(0.0, 1.0).tolist()
        return cosines

    def nearest(self, words: Iterable[str], count: int) -> dict[str, list[str]]:
        """For each word at most ``count`` others by falling cosine, in its own case; [] where the case is mixed.

        A model that knows lower case only gives its words in the case that is asked for.
        """
        wanted = dict.fromkeys(words)
        found: dict[str, list[str]] = {word: [] for word in wanted}
        cased = any(case_of(word) != "lower" for word in self.words)
        for case in ("lower", "title", "upper"):
            asked = [word for word in wanted if case_of(word) == case]
            pool = [word for word in self.words if not cased or case_of(word) == case]
            if asked and pool:
                found |= self._nearest(asked, pool, count, case)
        return found

    def _nearest(self, asked: list[str], pool: list[str], count: int, case: str) -> dict[str, list[str]]:
        means_UD = self.means([f" {word}" for word in asked])
        best_U: list[list[tuple[float, str]]] = [[] for _ in asked]
        for start in range(0, len(pool), CHUNK):
            part = pool[start : start + CHUNK]
            cosines = means_UD @ normalize(self.vectors(part), dim=1).T
            values, places = cosines.topk(min(count + 2, len(part)), dim=1)  # itself, and itself in another case, may be there
            for best, row, chosen in zip(best_U, values.tolist(), places.tolist(), strict=True):
                best += [(-value, in_case(part[place], case)) for value, place in zip(row, chosen, strict=True)]
        return {
            word: list(dict.fromkeys(near for _, near in sorted(best) if near.lower() != word.lower()))[:count]
            for word, best in zip(asked, best_U, strict=True)
        }

    @torch.no_grad()
    def vectors(self, words: Sequence[str]) -> Tensor:
        """(W, D) input embeddings of ``words``, which are among ``self.words`` in this or in lower case."""
        ids = [self.words.get(word, self.words.get(word.lower(), 0)) for word in words]
        return self._model.embed(torch.tensor([ids], device=self._model.device))[0].float()
