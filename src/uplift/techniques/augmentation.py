"""What techniques share that add training rows: only the training part grows, every copy names its source and keeps its group.

What a copy says is a function of the options and of (seed, source row, number of the copy), so neither workers, nor batches,
nor the other rows change it. With ``turns`` the number follows from the row and the epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, PrivateAttr

from uplift.core.errors import DataError
from uplift.core.technique import Technique
from uplift.core.values import Corpus, Sample, Setting, derive_seed
from uplift.data.formats import content_text
from uplift.data.rewording import Span, copy_of
from uplift.data.sampling import row_key

DrawSeed = Annotated[int, Field(ge=0, lt=2**31)]


def row_seed(use: str, seed: int, sample: Sample, number: int) -> int:
    """What decides a copy; equal rows are told apart by their number."""
    return derive_seed(use, seed, *row_key(sample), number)


class Augmenting(Technique):
    """Base: the training part with further rows behind it. Not a technique by itself."""

    seed: DrawSeed = 0
    """Which draws."""

    _setting: Any = PrivateAttr(None)
    _rows: int = PrivateAttr(0)
    _made: int = PrivateAttr(0)

    @property
    def active(self) -> bool:
        """Whether it does anything."""
        raise NotImplementedError

    def meet(self, setting: Setting) -> None:
        """Remember what the recipe works with."""
        self._setting = setting

    @property
    def held_texts(self) -> list[str]:
        """What must not be trained on: texts of the validation and test parts."""
        return [content_text(sample) for part in ("validation", "test") for sample in self._setting.corpora[part]]

    def further(self, samples: Sequence[Sample]) -> list[Sample]:
        """The rows to add."""
        raise NotImplementedError

    def samples(self, corpus: Corpus) -> Corpus:
        """The training part with the rows that were made from it behind it; other parts as they are."""
        if corpus.part != "train" or not self.active:
            return corpus
        given = list(corpus)
        made = self.further(given)
        self._rows, self._made, self._setting = len(given), len(made), None
        return Corpus([*given, *made], corpus.part, corpus.reference)


class Copying(Augmenting):
    """Base: so many rows made from each row. Not a technique by itself."""

    copies: Annotated[int, Field(ge=1, le=100)] = 1
    """Further rows made from each row."""
    turns: bool = False
    """A row and its copies take turns: every epoch shows one of them, the next epoch the next one. An epoch is then as long as
    without copies, and no row is seen twice in the same words before `copies` + 1 epochs."""

    def copy_with(self, sample: Sample, text: str, number: int, spans: Sequence[Span] = ()) -> Sample:
        """Copy ``number`` of a row with this text. Raises DataError when the row's prompt does not show its text."""
        model, task = self._setting.model, self._setting.task
        made = copy_of(sample, text, number, self.use, task, model.labels, spans, turns=self.turns)
        if made is None:
            raise DataError(
                "the prompt of a row does not show the row's text",
                where=str(sample.origin),
                why=f"`{self.use}` changes the text, and could not be seen",
                fix=f"write `{self.use}` before what rewrites the prompts",
            )
        return made
