"""Which texts of a row are worked on, and how changed texts go back to where they stood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uplift.core.errors import DataError, Place
from uplift.data.formats import Format, detect_format
from uplift.data.rows import Row
from uplift.data.sources import columns_of, missing_column

LOOKED_AT = 200
"""Rows that the detection of columns looks at."""
FORMAT_COLUMNS: Mapping[Format, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "input", "output"),
    "prompt_completion": ("prompt", "completion"),
    "label": ("text",),
    "text": ("text",),
}
CONTENT_KEYS = ("content", "value")
ROLE_KEYS = ("role", "from")
PROSE_CHARACTERS = 15
"""Mean length from which a column of strings can be text; identifiers and names are shorter."""
PROSE_SPACED = 0.5
"""Least share of such strings that have a space or a character beyond ASCII; links and hashes have neither."""

Slot = tuple[str | int, ...]
"""Keys that lead to a text in a row: a column, or a column, the number of a turn and its key."""


@dataclass(frozen=True)
class Columns:
    """The columns of a row that hold texts: strings, lists of strings, or turns with ``content`` (``value``)."""

    names: tuple[str, ...]

    def slots(self, values: Mapping[str, Any]) -> list[tuple[Slot, bool]]:
        """Where the texts of a row are, blank ones left out; True: a system turn, which is not what the row says."""
        found: list[tuple[Slot, bool]] = []
        for name in self.names:
            value = values.get(name)
            if isinstance(value, str):
                if value and not value.isspace():
                    found.append(((name,), False))
            elif isinstance(value, list):
                found += _inside(name, value)
        return found


def _inside(name: str, items: Sequence[Any]) -> list[tuple[Slot, bool]]:
    found: list[tuple[Slot, bool]] = []
    for index, item in enumerate(items):
        if isinstance(item, str):
            if item.strip():
                found.append(((name, index), False))
        elif isinstance(item, Mapping):
            system = any(item.get(key) == "system" for key in ROLE_KEYS)
            slots = [(name, index, key) for key in CONTENT_KEYS if isinstance(item.get(key), str) and item[key].strip()]
            found += [(slot, system) for slot in slots]
    return found


def text_at(values: Mapping[str, Any], slot: Slot) -> str:
    """The text in a slot."""
    value: Any = values
    for key in slot:
        value = value[key]
    assert isinstance(value, str)
    return value


def with_texts(values: Mapping[str, Any], slots: Sequence[Slot], texts: Sequence[str]) -> dict[str, Any]:
    """A copy of a row with other texts in its slots; everything else is as it was."""
    result = dict(values)
    for slot, text in zip(slots, texts, strict=True):
        column = str(slot[0])
        if len(slot) == 1:
            result[column] = text
            continue
        items = list(result[column])
        index = int(slot[1])
        items[index] = text if len(slot) == 2 else {**items[index], slot[2]: text}
        result[column] = items
    return result


def choose_columns(rows: Sequence[Row], named: Sequence[str], key: str = "--column") -> Columns:
    """The named columns; none named: those of a format that is known, else all that read like text.

    ``rows`` are the first of a source; ``key`` is where columns are named. Raises DataError when a named column does not exist,
    or nothing reads like text.
    """
    if named:
        for name in named:
            if rows and not any(name in row.values for row in rows):
                raise missing_column(name, columns_of(rows), Place(rows[0].origin.file), key)
        return Columns(tuple(named))
    known = columns_of(rows)
    try:
        names = tuple(name for name in FORMAT_COLUMNS[detect_format(rows)] if name in known)
    except DataError:
        names = tuple(name for name in known if _reads_like_text(name, rows))
    if rows and not any(Columns(names).slots(row.values) for row in rows):
        raise DataError(
            "no column reads like text",
            where=Place(rows[0].origin.file),
            why=f"the columns are: {', '.join(known) or 'none'}",
            fix="name those to work on with `--column`",
        )
    return Columns(names)


def _reads_like_text(name: str, rows: Sequence[Row]) -> bool:
    strings = [value for row in rows[:LOOKED_AT] if isinstance(value := row.values.get(name), str) and value.strip()]
    if not strings:
        return False
    spaced = sum(" " in value.strip() or not value.isascii() for value in strings)
    return sum(map(len, strings)) >= PROSE_CHARACTERS * len(strings) and spaced >= PROSE_SPACED * len(strings)
