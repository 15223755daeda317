"""A sample with another text: its question or its prompt rewritten, its labelled spans moved along with the edits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from uplift.core.recipe import ClassifyTask
from uplift.core.values import Sample
from uplift.data.clean.spans import edits_between, move_spans
from uplift.data.clean.step import Edit
from uplift.data.formats import content_text, question, sample_id
from uplift.data.sampling import TURNS, row_key

SPANS = "spans"
"""Key of ``Sample.extras``: (first character, end, label) of each labelled stretch of the text, in order."""
SOURCE, MADE_BY = "source", "made_by"
"""Keys of ``Sample.extras``: the id of the row that a copy was made from, and the techniques that made it."""

Span = tuple[int, int, str]


def reworded(sample: Sample, text: str, task: ClassifyTask, labels: Sequence[str]) -> Sample | None:
    """The row with another text, prompt and label unchanged. None when its prompt does not show its text."""
    old, extras = content_text(sample), {**sample.extras, "content": text}
    if not sample.messages:
        return replace(sample, text=text, extras=extras)
    place = max(i for i, message in enumerate(sample.messages) if message.role == "user")
    asked = sample.messages[place].content
    for before, after in ((question(old, task, labels), question(text, task, labels)), (old, text)):
        head, found, tail = asked.rpartition(before)
        if found:
            turn = replace(sample.messages[place], content=head + after + tail)
            turns = (*sample.messages[:place], turn, *sample.messages[place + 1 :])
            return replace(sample, messages=turns, extras=extras)
    return None


def copy_of(
    sample: Sample,
    text: str,
    number: int,
    made_by: str,
    task: ClassifyTask,
    labels: Sequence[str],
    spans: Sequence[Span] = (),
    *,
    turns: bool = False,
) -> Sample | None:
    """A further row with this text: its own id, the group of its source, and a mark that says where it came from.

    ``turns``: it takes turns with its source, one an epoch.
    """
    made = reworded(sample, text, task, labels)
    if made is None:
        return None
    extras: dict[str, Any] = {key: value for key, value in made.extras.items() if key not in ("occurrence", SPANS, TURNS)}
    extras |= {SOURCE: extras.get(SOURCE, sample.id), MADE_BY: (*extras.get(MADE_BY, ()), made_by)}
    if spans:
        extras[SPANS] = tuple(spans)
    if turns:
        extras[TURNS] = sample.extras.get(TURNS) or row_key(sample)
    return replace(made, id=sample_id("\x1f".join(map(str, (*row_key(sample), made_by, number)))), extras=extras)


def spans_in(sample: Sample, text: str) -> list[Span] | None:
    """Where the row's labelled spans stand in another form of its text. None when one of them is not there as it was."""
    old, spans = content_text(sample), sample.extras.get(SPANS, ())
    found = follow(spans, edits_between(old, text)) if spans else []
    same = [text[a:b] for a, b, _ in found] == [old[a:b] for a, b, _ in spans]
    return found if same else None


def follow(spans: Sequence[Span], edits: Sequence[Edit]) -> list[Span]:
    """The spans after the edits; one whose text an edit broke is left out."""
    places = move_spans([(begin, end) for begin, end, _ in spans], edits)
    return [(*place, label) for place, (_, _, label) in zip(places, spans, strict=True) if place is not None]
