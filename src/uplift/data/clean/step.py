"""What a step of `data.prepare` is: it says of each text whether it goes on, how it is changed, and under which rule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

Sketches = TypeVar("Sketches", bound=tuple[NDArray[Any], ...])


@dataclass(frozen=True, slots=True)
class Edit:
    """Characters ``start`` to ``end`` of a text become ``new``; ``rule`` says why."""

    start: int
    end: int
    new: str
    rule: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """``text`` as it goes on, or None: dropped. ``counts``: rule -> how often it struck (a drop has one rule, once).

    ``detail`` says what was found, for people. ``edits`` (in order, not overlapping) lead from the old text to the new one,
    where the step knows them; labelled spans of a row move along with them.
    """

    text: str | None
    counts: Mapping[str, int] = field(default_factory=dict)
    detail: str = ""
    edits: tuple[Edit, ...] | None = None


def dropped(rule: str, detail: str) -> Verdict:
    """The verdict on a text that goes."""
    return Verdict(None, {rule: 1}, detail)


def edited(text: str, edits: Sequence[Edit]) -> Verdict:
    """The verdict on a text that is changed in these places."""
    counts: dict[str, int] = {}
    pieces, at = [], 0
    for edit in edits:
        pieces += [text[at : edit.start], edit.new]
        counts[edit.rule] = counts.get(edit.rule, 0) + 1
        at = edit.end
    return Verdict("".join([*pieces, text[at:]]), counts, "", tuple(edits))


class CleaningStep:
    """Base of all steps. One that looks at each text alone writes only ``judge``.

    A step with ``looks_at_all`` first gets ``sketch`` of every chunk of texts (in worker processes; what it returns travels
    between processes: numpy arrays and plain values), then ``settle`` once with all sketches in the order of the rows, and
    then judges: ``row`` is the running number of the text, from 0, in the order in which it was sketched.
    ``judge`` is called in worker processes too, and must give the same verdict in any of them and in any order.
    """

    looks_at_all: ClassVar[bool] = False
    sketches: ClassVar[type[tuple[Any, ...]]]
    """What ``sketch`` gives: a named tuple of arrays, where sketches and decisions are to travel between machines."""

    def sketch(self, texts: Sequence[str]) -> Any:
        """What ``settle`` must know of these texts."""
        raise NotImplementedError

    def settle(self, sketches: Iterable[Any]) -> None:
        """Decide, from all sketches, what ``judge`` will say."""
        raise NotImplementedError

    def decision(self) -> Mapping[str, NDArray[Any]]:
        """What ``settle`` has decided, for the same step elsewhere."""
        raise NotImplementedError

    def decide(self, decision: Mapping[str, NDArray[Any]]) -> None:
        """In place of ``settle``: a decision that was made elsewhere."""
        raise NotImplementedError

    def judge(self, row: int, text: str) -> Verdict:
        """What becomes of the text."""
        raise NotImplementedError


def joined(empty: Sketches, more: Iterable[Sketches]) -> Sketches:
    """Named tuples of arrays as one, field by field along the first axis. ``empty`` is one without rows.

    Takes the memory of the result and no more: there can be a sketch for each row of a corpus.
    """
    buffers = [bytearray() for _ in empty]
    for sketch in more:
        for buffer, part in zip(buffers, sketch, strict=True):
            buffer += part.tobytes()
    fields = zip(buffers, empty, strict=True)
    return type(empty)(*(np.frombuffer(buffer, part.dtype).reshape(-1, *part.shape[1:]) for buffer, part in fields))
