"""Labelled spans of a text (entities, answers) follow the text when it is edited."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from uplift.data.clean.step import Edit
from uplift.data.rows import RowProblem

MOST_COMPARED = 2000
"""Characters up to which two texts are compared one by one; a longer stretch counts as replaced whole."""

Span = tuple[int, int]


def read_spans(value: Any, text: str, column: str) -> list[Span]:
    """The [start, end) pairs of a column of spans: lists ``[start, end, ...]`` or objects with ``start`` and ``end``.

    Raises RowProblem for anything else, and for spans that lie outside the text.
    """
    if value is None:
        return []
    if not isinstance(value, list):
        raise RowProblem("span", f"`{column}` is {type(value).__name__}, not a list of spans")
    return [_read_span(item, text, f"{column}[{index}]") for index, item in enumerate(value)]


def _read_span(item: Any, text: str, name: str) -> Span:
    pair: Sequence[Any] = (
        (item.get("start"), item.get("end")) if isinstance(item, Mapping) else item[:2] if isinstance(item, list) else ()
    )
    start, end = pair if len(pair) == 2 else (None, None)
    if type(start) is not int or type(end) is not int:
        raise RowProblem("span", f"`{name}` is neither [start, end] nor an object with `start` and `end`")
    if not 0 <= start <= end <= len(text):
        raise RowProblem("span", f"`{name}` goes from {start} to {end} in a text of {len(text)} characters")
    return start, end


def write_spans(value: Any, spans: Sequence[Span | None]) -> Any:
    """The column with spans at their new places; those that are None are left out, labels stay."""
    if value is None:
        return None
    found = []
    for item, span in zip(value, spans, strict=True):
        if span is not None:
            moved = {**item, "start": span[0], "end": span[1]} if isinstance(item, Mapping) else [*span, *item[2:]]
            found.append(moved)
    return found


def move_spans(spans: Sequence[Span | None], edits: Sequence[Edit]) -> list[Span | None]:
    """Where spans are after ``edits`` (in order, not overlapping). An edit inside a span changes its length.

    None: an edit cut through an end of the span, or took all of its text away.
    """
    return [None if span is None else _moved(span, edits) for span in spans]


def _moved(span: Span, edits: Sequence[Edit]) -> Span | None:
    start, end = span
    shift = growth = 0
    for edit in edits:
        change = len(edit.new) - (edit.end - edit.start)
        if edit.end <= start and (edit.start < start or start < end):
            shift += change
        elif edit.start >= end:
            break
        elif edit.start >= start and edit.end <= end:
            growth += change
        else:
            return None
    if end + growth == start and end > start:
        return None
    return start + shift, end + shift + growth


def first_difference(old: str, new: str) -> int:
    """Up to which character two texts are equal."""
    return bisect_left(range(min(len(old), len(new))), True, key=lambda at: old[: at + 1] != new[: at + 1])


def edits_between(old: str, new: str, rule: str = "") -> tuple[Edit, ...]:
    """Edits that lead from one text to another, for steps that do not say them: as small as a comparison finds them."""
    first, most = first_difference(old, new), min(len(old), len(new))
    last = 0
    while last < most - first and old[-1 - last] == new[-1 - last]:
        last += 1
    a, b = old[first : len(old) - last], new[first : len(new) - last]
    if not a and not b:
        return ()
    if max(len(a), len(b)) > MOST_COMPARED:
        return (Edit(first, first + len(a), b, rule),)
    codes = SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
    return tuple(Edit(first + i, first + j, b[k:m], rule) for kind, i, j, k, m in codes if kind != "equal")
