"""The class labels of a task: which values occur, which word each stands for, in one fixed order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uplift.core.errors import DataError, Place
from uplift.core.recipe import ClassifyTask
from uplift.data.rows import Row, RowProblem, check_characters, nearest

MOST_SHARE = 0.5
"""More distinct labels than this share of the rows (and than ``FEW``) is no classification."""
FEW = 20


@dataclass(frozen=True)
class Labels:
    """``words[i]`` is the word of class i; ``by_value`` maps a label value, as text, to its class."""

    words: tuple[str, ...]
    by_value: Mapping[str, int]

    @classmethod
    def of(cls, rows: Sequence[Row], task: ClassifyTask) -> Labels:
        """The labels of training rows under ``task.labels``; classes follow the values, numbers in numeric order.

        Raises DataError: fewer than two classes occur, or the column holds nearly as many labels as rows.
        """
        counts = _count(rows, task)
        values = sorted(task.labels or counts, key=_value_order)
        occurring = {task.labels.get(value, value) for value in values if counts[value]}
        place = Place(rows[0].origin.file if rows else None, key="task.label")
        if len(occurring) < 2:
            found = ", ".join(f"{value!r} ({count})" for value, count in counts.most_common(5)) or "none"
            what = "classification needs at least two classes"
            fix = "check `task.label`, `task.labels`, and a `limit` on sorted rows"
            raise DataError(what, where=place, why=f"the labels that occur: {found}", fix=fix)
        if not task.labels and len(values) > max(FEW, MOST_SHARE * sum(counts.values())):
            why = f"{len(values)} different values in {sum(counts.values())} rows"
            raise DataError(f"`{task.label}` does not look like a label", where=place, why=why, fix="name another column")
        words = list(dict.fromkeys(task.labels.get(value, value) for value in values))
        return cls(tuple(words), {value: words.index(task.labels.get(value, value)) for value in values})

    def index(self, value: str) -> int:
        """The class of a label value. Raises RowProblem for a value that training does not know."""
        if value not in self.by_value:
            raise RowProblem("unknown_label", f"the label {value!r} is not known{nearest(value, self.by_value)}")
        return self.by_value[value]


def label_key(value: Any, name: str) -> str:
    """A label value as text: ``1``, ``1.0`` and ``"1"`` are one label. Raises RowProblem for what cannot be a label."""
    if value is None:
        raise RowProblem("null", f"`{name}` is null")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int):
        raise RowProblem("wrong_type", f"`{name}` is {type(value).__name__}, not a label")
    text = str(value).strip()
    if not text:
        raise RowProblem("empty_text", f"`{name}` is empty")
    check_characters(text, name)
    return text


def _count(rows: Sequence[Row], task: ClassifyTask) -> Counter[str]:
    counts: Counter[str] = Counter()
    for row in rows:
        try:
            counts[label_key(row.values.get(task.label), task.label)] += 1
        except RowProblem:
            continue  # the conversion of this row reports it
    return counts


def _value_order(value: str) -> tuple[bool, int, str]:
    number = value.removeprefix("-").isascii() and value.removeprefix("-").isdigit() and len(value) < 20
    return (not number, int(value) if number else 0, value)
