"""Augmentation by a model: adds copies of the training rows that a language model rewrites, told which label must stay.

When: a few dozen to a few hundred labelled rows, and a model that writes the language well.
When not: with a small model that rewrites badly (`synthetic` checks labels, this does not); where exact words decide.
Paper: Kumar et al. 2020, Data Augmentation using Pre-trained Transformer Models; Wu et al. 2019, Conditional BERT (`fill`).
Cost: memory of the writing model while it writes; time of one answer (`rewrite`) or one pass (`fill`) a copy, once.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from uplift.core.errors import RecipeError
from uplift.core.recipe import Question
from uplift.core.values import Sample
from uplift.data.clean.step import Edit, edited
from uplift.data.formats import content_text
from uplift.data.rewording import SPANS
from uplift.data.words import case_of, in_case
from uplift.model.gap_filler import GapFiller
from uplift.model.opening import asked_kind
from uplift.techniques.augment.augment_words import Page
from uplift.techniques.augmentation import row_seed
from uplift.techniques.written_rows import Draft, WrittenCopies, filled

LIKELIEST = 10
"""Words that a gap is filled from."""


def fill_in(gap: Sequence[tuple[float, str]], old: str, temperature: float, rng: random.Random) -> str | None:
    """A word for a gap, drawn by likelihood (ln p, word) at a temperature, never the old one; in the old one's case."""
    others = [(log_p, word) for log_p, word in gap if word.lower() != old.lower()]
    if not others:
        return None
    best = max(log_p for log_p, _ in others)
    odds = [1.0 if temperature == 0 else math.exp((log_p - best) / temperature) for log_p, _ in others]
    word = others[0][1] if temperature == 0 else rng.choices([word for _, word in others], odds)[0]
    case = case_of(old)
    return in_case(word, case) if case is not None else word


class AugmentModel(WrittenCopies):
    """Adds `copies` of every training row in other words of a model; validation and test stay as they are."""

    use: Literal["augment_model"] = "augment_model"
    method: Literal["auto", "rewrite", "fill"] = "auto"
    """`rewrite`: a causal language model writes the whole text again; `fill`: a masked one fills gaps; `auto`: what it can."""
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.15
    """fill: share of a text's words that become gaps."""
    prompt: Question = (
        "Write this text again in other words. It must still fit the label {label}. Answer with the new text only.\n\n{text}"
    )
    """rewrite: what is asked, with slots `{text}` and `{label}`."""

    def _fills(self) -> bool:
        if self.model is None or self.method == "rewrite":
            if self.method == "fill":
                fix = "name one: `model: ...`"
                raise RecipeError("`augment_model` with `method: fill` needs a masked language model", fix=fix)
            return False
        kind = asked_kind(self.model, self._base_dir)
        if self.method == "fill" and kind != "masked":
            raise RecipeError("the model of `augment_model` fills no gaps", why=f"it is a {kind} model", fix="use `rewrite`")
        if kind == "translating":
            raise RecipeError("a translation model cannot rewrite", where="augment_model.model", fix="use `back_translation`")
        return kind == "masked"

    def drafts(self, samples: Sequence[Sample]) -> Sequence[Draft]:
        """All copies; those that say nothing new, or what is in the test part, are refused."""
        asked = [(index, number) for index in range(len(samples)) for number in range(self.copies)]
        seeds = [row_seed(self.use, self.seed, samples[index], number) for index, number in asked]
        rows = [samples[index] for index, _ in asked]
        texts = self._filled(rows, seeds) if self._fills() else self._rewritten(rows, seeds)
        return self.judged(samples, asked, texts)

    def _rewritten(self, rows: Sequence[Sample], seeds: Sequence[int]) -> list[tuple[str, str]]:
        labels = self._setting.model.labels
        questions = [filled(self.prompt, {"text": content_text(sample), "label": labels[sample.label or 0]}) for sample in rows]
        return self.written(self.author(self.model), questions, seeds)

    def _filled(self, rows: Sequence[Sample], seeds: Sequence[int]) -> list[tuple[str, str]]:
        """Each text with its label before it and gaps in it; labelled spans are left whole."""
        assert self.model is not None
        filler = GapFiller(self.model, self._base_dir, self._setting.model.device)
        luck = [random.Random(seed) for seed in seeds]
        pages = [Page(content_text(sample), sample.extras.get(SPANS, ())) for sample in rows]
        chosen = [
            sorted(rng.sample(page.free, min(len(page.free), round(self.alpha * len(page.words)))))
            for page, rng in zip(pages, luck, strict=True)
        ]
        shown = [
            edited(page.text, [page.replaced(index, filler.gap, "gap") for index in indices]).text or ""
            for page, indices in zip(pages, chosen, strict=True)
        ]
        labels = self._setting.model.labels
        gaps = filler.best([f"{labels[row.label or 0]}: {text}" for row, text in zip(rows, shown, strict=True)], LIKELIEST)
        return [
            self._with_words(page, indices, own, rng) for page, indices, own, rng in zip(pages, chosen, gaps, luck, strict=True)
        ]

    def _with_words(
        self, page: Page, indices: list[int], gaps: list[list[tuple[float, str]]], rng: random.Random
    ) -> tuple[str, str]:
        if len(gaps) > len(indices):
            return page.text, "odd_gaps"  # the text itself holds what stands for a gap
        words = [(i, fill_in(gap, page[i], self.temperature, rng)) for i, gap in zip(indices, gaps, strict=False)]
        edits: list[Edit] = [page.replaced(i, word, "fill") for i, word in words if word is not None]
        return edited(page.text, edits).text or "", ""
