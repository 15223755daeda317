"""Synthetic rows: a language model writes new rows of each label after examples; what is doubtful is refused.

When: a few dozen labelled rows, and a model that writes much better than the one that is trained.
When not: when real rows can be had; again and again from a model trained on its own rows (quality falls each time).
Paper: Schick and Schuetze 2021, Generating Datasets with Pretrained Language Models; Shumailov et al. 2024 on collapse.
Cost: memory of the writing model while it writes; time of up to `attempts` answers for each row that is wanted, once.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, PrivateAttr, model_validator

from uplift.core.model_section import Model
from uplift.core.recipe import QUESTION, ClassifyTask, Question
from uplift.core.values import Effect, Origin, Sample, derive_seed
from uplift.data.formats import content_text, labelled, question, sample_id
from uplift.data.rewording import MADE_BY
from uplift.model.endpoint import Endpoint
from uplift.techniques.authors import Author, DistantAuthor, LocalAuthor, facts_of
from uplift.techniques.label_teacher import label_log_probabilities
from uplift.techniques.sieve import Sieve
from uplift.techniques.teacher import open_teacher, speaks_words
from uplift.techniques.written_rows import Draft, WrittenRows, filled

SHORT_ANSWER = 16
MAX_LENGTH = 1024


class Synthetic(WrittenRows):
    """Adds up to `rows` rows of each label, written by a model that is shown examples; validation and test stay as they are.

    A row is refused when it is unfinished, known already, nearly so, in a held-out part, made of phrases that earlier ones
    used, or when the judge gives its label less than `agree`. Every row that stays is marked as made, in `extras.made_by`.
    """

    use: Literal["synthetic"] = "synthetic"
    rows: Annotated[int, Field(ge=0, le=10**6)] = 8
    """Rows wanted of each label (0: off)."""
    attempts: Annotated[int, Field(ge=1, le=100)] = 4
    """Answers asked for each wanted row, at most."""
    examples: Annotated[int, Field(ge=0, le=64)] = 3
    """Training rows of the label that are shown, drawn anew for each answer."""
    prompt: Annotated[str, Field(min_length=1)] = (
        "Here are texts with the label {label}:\n\n{examples}\n\n"
        "Write one more text with this label, different from these. Answer with the text only."
    )
    """What is asked, with slots `{label}` and `{examples}`."""
    endpoint: Annotated[str, Field(pattern=r"^https?://", max_length=4096)] | None = None
    """Address of an OpenAI-compatible server that writes instead (`http://host:port/v1`); the key is in OPENAI_API_KEY."""
    endpoint_model: Annotated[str, Field(max_length=256)] = ""
    """endpoint: the server's name for the model."""
    near: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Similarity to a known row (shared word pairs) from which a row is a near duplicate."""
    said: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Largest share of a row's three-word phrases that earlier written rows may have used (1: any)."""
    agree: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Least probability that the judge gives the wanted label (0: no judge)."""
    judge: Model | None = None
    """Who judges: a classifier of the same labels, or a language model that is asked in words; default: who writes."""
    question: Question = QUESTION
    """What a judge is asked in words, with slots `{text}` and `{labels}`."""

    off: ClassVar[Mapping[str, Any]] = {"rows": 0}

    _distinct: float = PrivateAttr(0.0)

    @model_validator(mode="after")
    def _one_author(self) -> Self:
        if self.endpoint is not None and self.model is not None:
            raise ValueError("`model` and `endpoint` both write: give one of them")
        return self

    @property
    def active(self) -> bool:
        """Whether rows are wanted."""
        return self.rows > 0

    @property
    def asks_own_model(self) -> bool:
        """Whether the recipe's own model writes."""
        return self.model is None and self.endpoint is None

    def facts(self) -> Mapping[str, Any]:
        """The author and the judge."""
        own = self._setting.model
        author = {"endpoint": self.endpoint} if self.endpoint else facts_of(self.model, own, self._base_dir)
        return {"author": author, "judge": facts_of(self.judge, own, self._base_dir) if self.judge is not None else None}

    def drafts(self, samples: Sequence[Sample]) -> Sequence[Draft]:
        """In rounds: as many answers as rows are wanting, judged one after the other, until there are enough or no attempts."""
        labels = self._setting.model.labels
        endpoint = Endpoint(self.endpoint, self.endpoint_model) if self.endpoint is not None else None
        author: Author = DistantAuthor(endpoint) if endpoint is not None else self.author(self.model)
        sieve = Sieve([content_text(sample) for sample in samples], self.held_texts, self.near, self.said)
        found: list[Draft] = []
        for round_ in range(self.attempts):
            kept = Counter(draft.label for draft in found if not draft.refused)
            wanted = [label for label in range(len(labels)) for _ in range(self.rows - kept[label])]
            if not wanted:
                break
            seeds = [derive_seed(self.use, self.seed, label, round_, place) for place, label in enumerate(wanted)]
            asked = [self._asked(samples, label, seed) for label, seed in zip(wanted, seeds, strict=True)]
            texts = self.written(author, asked, seeds)
            sure = self._agreement(author, [text for text, _ in texts], wanted)
            for (text, refused), label, agrees in zip(texts, wanted, sure, strict=True):
                refused = refused or ("" if text else "empty_text") or ("" if agrees >= self.agree else "other_label")
                found.append(Draft(-1, len(found), text, label, refused or sieve.judge(text)))
        return found

    def _asked(self, samples: Sequence[Sample], label: int, seed: int) -> str:
        """The prompt with examples of the label."""
        own = [content_text(sample) for sample in samples if sample.label == label]
        shown = random.Random(seed).sample(own, min(self.examples, len(own)))
        slots = {"label": self._setting.model.labels[label], "examples": "\n".join(f"- {text}" for text in shown)}
        return filled(self.prompt, slots)

    def _agreement(self, author: Author, texts: Sequence[str], wanted: Sequence[int]) -> list[float]:
        """The probability that the judge gives each text's label; 1 for an empty one, which is refused for itself."""
        if self.agree == 0:
            return [1.0] * len(texts)
        model = self._setting.model
        full = [index for index, text in enumerate(texts) if text]
        if self.judge is None and not isinstance(author, LocalAuthor):
            return self._asked_label(author, texts, wanted)
        rows = [Sample(str(index), Origin("written", index + 1), text=texts[index], label=wanted[index]) for index in full]
        head: Literal["language", "class"] = "language"
        if self.judge is not None:
            head = "language" if speaks_words(self.judge, self._base_dir) else "class"
            teacher = open_teacher(self.judge, head, self._base_dir, model.device)
        else:
            assert isinstance(author, LocalAuthor)
            teacher = author.model
        log_p = label_log_probabilities(teacher, rows, model.labels, self.question, MAX_LENGTH) if rows else torch.zeros(0, 1)
        sure = {index: float(log_p[row, wanted[index]].exp()) for row, index in enumerate(full)}
        return [sure.get(index, 1.0) for index in range(len(texts))]

    def _asked_label(self, author: Author, texts: Sequence[str], wanted: Sequence[int]) -> list[float]:
        """1 where a server names the wanted label first of all labels, 0 elsewhere."""
        labels, task = self._setting.model.labels, ClassifyTask(prompt=self.question)
        questions = [question(text or "-", task, labels) for text in texts]
        seeds = [derive_seed("judge", self.seed, text) for text in texts]
        answers = author.write(questions, seeds, SHORT_ANSWER, 0.0)
        return [float(_first_named(answer.text, labels) == label) for answer, label in zip(answers, wanted, strict=True)]

    def made(self, samples: Sequence[Sample], draft: Draft) -> Sample:
        """A kept row, of no source, marked as made."""
        model, task = self._setting.model, self._setting.task
        origin = Origin(str(self._file or "written"), draft.number + 1)
        head: Literal["language", "class"] = "class" if model.head_kind == "class" else "language"
        row = labelled(draft.text, draft.label, origin, task, head, model.labels)
        identity = sample_id("\x1f".join((self.use, str(self.seed), str(draft.number), draft.text)))
        return replace(row, id=identity, extras={**row.extras, MADE_BY: (self.use,)})

    def further(self, samples: Sequence[Sample]) -> list[Sample]:
        """The kept rows."""
        rows = super().further(samples)
        taken = Sieve([], [])
        for row in rows:
            taken.judge(content_text(row))
        self._distinct = taken.distinct
        return rows

    def effect(self) -> Effect:
        """Share of the written rows that were kept, and how varied they are."""
        found = super().effect()
        return replace(found, detail=f"{found.detail}; distinct-2 {self._distinct:.2f}")


def _first_named(answer: str, labels: Sequence[str]) -> int | None:
    """The label whose word comes first in an answer."""
    places = [(answer.lower().find(label.lower()), index) for index, label in enumerate(labels)]
    return min(((place, index) for place, index in places if place >= 0), default=(0, None))[1]
