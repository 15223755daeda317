"""A first look at a data file: its format, columns, labels and lengths, enough to write a first recipe."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uplift.core.errors import DataError
from uplift.core.recipe import FileSource
from uplift.core.source_section import AnySource
from uplift.data.explore.findings import Goal
from uplift.data.explore.task import find_aim, label_of
from uplift.data.formats import Format
from uplift.data.packages import in_encoding
from uplift.data.rows import Row
from uplift.data.sources import columns_of, read_source

MOST_ROWS = 50_000
CHARACTERS_PER_TOKEN = 3.5
"""English text under a vocabulary of about 50,000; only used to choose a first `max_length`."""


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
    encoding: str | None = None
    not_utf8: bool = False
    """Most of the quarantined rows are in another encoding."""

    @property
    def majority(self) -> float:
        """Share of the most frequent label (0 when there are none)."""
        return self.labels[0][1] / sum(count for _, count in self.labels) if self.labels else 0.0


def first_look(path: Path, encoding: str | None = None) -> FirstLook:
    """Reads (the first rows of) a data file. Raises DataError when it is nothing that can be learned from."""
    source: AnySource = FileSource(path=str(path.absolute()), limit=MOST_ROWS)
    found = read_source(source if encoding is None else in_encoding(source, encoding), path.parent)
    if not found.rows:
        raise found_nothing(path, str(found.quarantined[0]) if found.quarantined else "the file is empty")
    columns = tuple(columns_of(found.rows))
    aim = find_aim(found.rows, columns)
    if aim.goal == "text" and not aim.text:
        raise found_nothing(path, f"no column holds text; the columns are: {', '.join(columns)}")
    return FirstLook(
        path=path,
        kind=found.format,
        format=aim.format,
        goal=aim.goal,
        rows=len(found.rows),
        quarantined=len(found.quarantined),
        complete=len(found.rows) < MOST_ROWS,
        columns=columns,
        text=aim.text,
        label=aim.label,
        labels=_count(found.rows, aim.label) if aim.label else (),
        lengths=_lengths(found.rows, aim.columns),
        encoding=encoding,
        not_utf8=2 * sum(row.rule == "utf8" for row in found.quarantined) > len(found.quarantined),
    )


def found_nothing(path: Path, why: str) -> DataError:
    """The error for a file that nothing can be learned from."""
    return DataError("there is nothing here to learn from", where=str(path), why=why, fix="give rows with text in them")


def _count(rows: Sequence[Row], name: str) -> tuple[tuple[str, int], ...]:
    return tuple(Counter(value for row in rows if (value := label_of(row.values, name)) is not None).most_common())


def _lengths(rows: Sequence[Row], columns: Sequence[str]) -> tuple[int, int, int]:
    sizes = sorted(sum(_characters(row.values.get(name)) for name in columns) / CHARACTERS_PER_TOKEN for row in rows)
    return round(statistics.median(sizes)), round(sizes[int(0.95 * (len(sizes) - 1))]), round(sizes[-1])


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list):
        return sum(_characters(item) for item in value)
    return sum(_characters(item) for item in value.values()) if isinstance(value, Mapping) else 0
