"""Back-translation: adds copies of the training rows that went into another language and came back in other words.

When: labelled rows in a language with good translation models; sentiment and topics survive the way well.
When not: with models that translate badly; for code, names and numbers; never judge a translator on what it translated itself.
Paper: Sennrich et al. 2016, Improving Neural Machine Translation Models with Monolingual Data; Xie et al. 2020, UDA.
Cost: memory of both models while they write; time of two translations a copy, once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from uplift.core.model_section import Model
from uplift.core.recipe import Question
from uplift.core.values import Sample, derive_seed
from uplift.data.formats import content_text
from uplift.techniques.augmentation import row_seed
from uplift.techniques.authors import LocalAuthor, facts_of
from uplift.techniques.written_rows import Draft, WrittenCopies, filled

ASK = "Translate this text into {language}. Answer with the translation only.\n\n{text}"


class BackTranslation(WrittenCopies):
    """Adds `copies` of every training row, translated by `model` and back by `back`; validation and test stay as they are.

    Either may be a translation model, which reads the text alone, or a language model, which is asked in words.
    """

    use: Literal["back_translation"] = "back_translation"
    back: Model | None = None
    """The model that translates back; default: the one that translated."""
    language: Annotated[str, Field(min_length=1, max_length=100)] = "French"
    """What a language model is asked to translate into."""
    original: Annotated[str, Field(min_length=1, max_length=100)] = "English"
    """The language of the rows."""
    ask: Question | None = None
    """What the first model reads, with slots `{text}` and `{language}`; default: `{text}` for a translation model."""
    ask_back: Question | None = None
    """What the second one reads."""

    def facts(self) -> Mapping[str, Any]:
        """Both models."""
        own = self._setting.model
        return {"there": facts_of(self.model, own, self._base_dir), "back": facts_of(self._second, own, self._base_dir)}

    @property
    def _second(self) -> Model | None:
        return self.back if self.back is not None else self.model

    def drafts(self, samples: Sequence[Sample]) -> Sequence[Draft]:
        """All copies; those that came back as they were, or as what is in the test part, are refused."""
        asked = [(index, number) for index in range(len(samples)) for number in range(self.copies)]
        seeds = [row_seed(self.use, self.seed, samples[index], number) for index, number in asked]
        texts = [(content_text(samples[index]), "") for index, _ in asked]
        ways = ((self.model, self.language, self.ask, "there"), (self._second, self.original, self.ask_back, "back"))
        for spec, language, template, way in ways:
            texts = self._translated(texts, [derive_seed(way, seed) for seed in seeds], spec, language, template)
        return self.judged(samples, asked, texts)

    def _translated(
        self, texts: Sequence[tuple[str, str]], seeds: Sequence[int], spec: Model | None, language: str, template: str | None
    ) -> list[tuple[str, str]]:
        """What is not refused yet, translated."""
        author, result = self.author(spec), list(texts)
        asked = template or (ASK if isinstance(author, LocalAuthor) else "{text}")
        open_ones = [index for index, (text, refused) in enumerate(texts) if text and not refused]
        questions = [filled(asked, {"text": texts[index][0], "language": language}) for index in open_ones]
        answers = self.written(author, questions, [seeds[index] for index in open_ones])
        for index, answer in zip(open_ones, answers, strict=True):
            result[index] = answer
        return result
