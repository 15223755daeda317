"""A first look at a data file: its format, columns, labels and lengths, enough to write a first recipe."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from uplift.core.errors import DataError
from uplift.core.recipe import FileSource
from uplift.data.formats import Format, detect_format
from uplift.data.labels import label_key
from uplift.data.rows import Row, RowProblem
from uplift.data.sources import columns_of, read_source

Goal = Literal["classify", "chat", "text"]
MOST_ROWS = 50_000
MOST_CLASSES = 50
MEAN_REPEATS = 5
"""A column whose values repeat at least this often on average may be a label."""
CHARACTERS_PER_TOKEN = 3.5
"""English text under a vocabulary of about 50,000; only used to choose a first `max_length`."""
_TURN_COLUMNS = {"messages": ("messages",), "sharegpt": ("conversations",)}
_PAIR_COLUMNS = {"alpaca": ("instruction", "input", "output"), "prompt_completion": ("prompt", "completion")}


@dataclass(frozen=True)
class FirstLook:
    """What a data file holds. ``lengths`` are estimated tokens per row: median, 95 % and longest.

    ``labels`` are (value, rows), most frequent first; ``text`` and ``label`` name columns of a classification.
    ``complete`` is False when only the first rows were looked at.
    """

    path: Path
    kind: str
    format: Format | None
    goal: Goal
    rows: int
    quarantined: int
    complete: bool
    columns: tuple[str, ...]
    text: str
    label: str
    labels: tuple[tuple[str, int], ...]
    lengths: tuple[int, int, int]

    @property
    def majority(self) -> float:
        """Share of the most frequent label (0 when there are none)."""
        return self.labels[0][1] / sum(count for _, count in self.labels) if self.labels else 0.0


def first_look(path: Path) -> FirstLook:
    """Reads (the first rows of) a data file. Raises DataError when it is nothing that can be learned from."""
    found = read_source(FileSource(path=str(path.absolute()), limit=MOST_ROWS), path.parent)
    if not found.rows:
        raise found_nothing(path, str(found.quarantined[0]) if found.quarantined else "the file is empty")
    columns = tuple(columns_of(found.rows))
    text, label = _classification_columns(found.rows, columns)
    form = _format(found.rows)
    goal: Goal = "chat" if form in {*_TURN_COLUMNS, *_PAIR_COLUMNS} else "classify" if label else "text"
    if goal == "text" and not text:
        raise found_nothing(path, f"no column holds text; the columns are: {', '.join(columns)}")
    return FirstLook(
        path=path,
        kind=found.format,
        format=form,
        goal=goal,
        rows=len(found.rows),
        quarantined=len(found.quarantined),
        complete=len(found.rows) < MOST_ROWS,
        columns=columns,
        text=text,
        label=label if goal == "classify" else "",
        labels=_count(found.rows, label) if goal == "classify" else (),
        lengths=_lengths(found.rows, _read_columns(form, text)),
    )


def found_nothing(path: Path, why: str) -> DataError:
    """The error for a file that nothing can be learned from."""
    return DataError("there is nothing here to learn from", where=str(path), why=why, fix="give rows with text in them")


def _format(rows: Sequence[Row]) -> Format | None:
    try:
        return detect_format(rows)
    except DataError:
        return None  # columns with names of their own; they are told apart by their contents


def _classification_columns(rows: Sequence[Row], columns: Sequence[str]) -> tuple[str, str]:
    """The text column (the longest text) and the label column (few values that repeat); empty where there is none."""
    words = {name: _mean_length(rows, name) for name in columns}
    text = "text" if words.get("text") else max(words, key=lambda name: words[name], default="")
    if not text or words[text] == 0:
        return "", ""
    candidates = [name for name in columns if name != text and _is_label(rows, name)]
    named = [name for name in candidates if name.lower() in {"label", "labels", "class", "category", "target", "sentiment"}]
    return text, (named or candidates or [""])[0]


def _mean_length(rows: Sequence[Row], name: str) -> float:
    texts = [value for row in rows[:1000] if isinstance(value := row.values.get(name), str)]
    return sum(map(len, texts)) / len(texts) if texts else 0.0


def _is_label(rows: Sequence[Row], name: str) -> bool:
    counts = Counter(value for row in rows if (value := _label(row.values, name)) is not None)
    total = sum(counts.values())
    repeats = total >= MEAN_REPEATS * len(counts) or (len(counts) <= 3 and total >= 2 * len(counts))
    return 2 <= len(counts) <= MOST_CLASSES and repeats and total >= 0.9 * len(rows)


def _label(values: Mapping[str, Any], name: str) -> str | None:
    try:
        return label_key(values.get(name), name)
    except RowProblem:
        return None


def _count(rows: Sequence[Row], name: str) -> tuple[tuple[str, int], ...]:
    return tuple(Counter(value for row in rows if (value := _label(row.values, name)) is not None).most_common())


def _read_columns(form: Format | None, text: str) -> tuple[str, ...]:
    if form in _TURN_COLUMNS:
        return _TURN_COLUMNS[form]
    return _PAIR_COLUMNS.get(form or "", (text,))


def _lengths(rows: Sequence[Row], columns: Sequence[str]) -> tuple[int, int, int]:
    sizes = sorted(sum(_characters(row.values.get(name)) for name in columns) / CHARACTERS_PER_TOKEN for row in rows)
    return round(statistics.median(sizes)), round(sizes[int(0.95 * (len(sizes) - 1))]), round(sizes[-1])


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list):
        return sum(_characters(item) for item in value)
    return sum(_characters(item) for item in value.values()) if isinstance(value, Mapping) else 0
