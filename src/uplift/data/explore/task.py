"""What rows are good for: their format, and the columns that hold text and labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uplift.core.errors import DataError
from uplift.core.recipe import ChatTask, ClassifyTask, Task, TextTask
from uplift.data.explore.findings import Goal
from uplift.data.formats import Format, detect_format
from uplift.data.labels import label_key
from uplift.data.rows import Row, RowProblem

MOST_CLASSES = 50
MEAN_REPEATS = 5
"""A column whose values repeat at least this often on average may be a label."""
LABEL_NAMES = frozenset({"label", "labels", "class", "category", "target", "sentiment"})
TURN_COLUMNS: Mapping[str, tuple[str, ...]] = {"messages": ("messages",), "sharegpt": ("conversations",)}
PAIR_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "alpaca": ("instruction", "input", "output"),
    "prompt_completion": ("prompt", "completion"),
}


@dataclass(frozen=True)
class Aim:
    """What rows are good for. ``text`` and ``label`` name columns, empty where there is none."""

    goal: Goal
    format: Format | None
    text: str
    label: str

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that training reads text from."""
        if self.goal == "chat":
            return {**TURN_COLUMNS, **PAIR_COLUMNS}.get(self.format or "", ())
        return (self.text,)

    @property
    def task(self) -> Task:
        """The recipe's section."""
        if self.goal == "chat":
            return ChatTask()
        return ClassifyTask(text=self.text, label=self.label) if self.goal == "classify" else TextTask(text=self.text)


def find_aim(rows: Sequence[Row], columns: Sequence[str]) -> Aim:
    """What rows are good for, by their columns; ``text`` is empty when no column holds text."""
    text, label = classification_columns(rows, columns)
    form = _format(rows)
    goal: Goal = "chat" if form in {*TURN_COLUMNS, *PAIR_COLUMNS} else "classify" if label else "text"
    return Aim(goal, form, text, label if goal == "classify" else "")


def _format(rows: Sequence[Row]) -> Format | None:
    try:
        return detect_format(rows)
    except DataError:
        return None  # columns with names of their own; they are told apart by their contents


def classification_columns(rows: Sequence[Row], columns: Sequence[str]) -> tuple[str, str]:
    """The text column (the longest text) and the label column (few values that repeat); empty where there is none."""
    words = {name: _mean_length(rows, name) for name in columns}
    text = "text" if words.get("text") else max(words, key=lambda name: words[name], default="")
    if not text or words[text] == 0:
        return "", ""
    candidates = [name for name in columns if name != text and _is_label(rows, name)]
    named = [name for name in candidates if name.lower() in LABEL_NAMES]
    return text, (named or candidates or [""])[0]


def _mean_length(rows: Sequence[Row], name: str) -> float:
    texts = [value for row in rows[:1000] if isinstance(value := row.values.get(name), str)]
    return sum(map(len, texts)) / len(texts) if texts else 0.0


def _is_label(rows: Sequence[Row], name: str) -> bool:
    counts = Counter(value for row in rows if (value := label_of(row.values, name)) is not None)
    total = sum(counts.values())
    repeats = total >= MEAN_REPEATS * len(counts) or (len(counts) <= 3 and total >= 2 * len(counts))
    return 2 <= len(counts) <= MOST_CLASSES and repeats and total >= 0.9 * len(rows)


def label_of(values: Mapping[str, Any], name: str) -> str | None:
    """The label in column ``name`` as text; None when there is none that can be a label."""
    try:
        return label_key(values.get(name), name)
    except RowProblem:
        return None
