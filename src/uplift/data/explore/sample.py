"""A random sample of a stream of rows whose memory is bounded, and of which every beginning is a random sample again."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from uplift.core.values import Origin, Sample
from uplift.data.rows import Row

MOST_ROWS = 20_000
MOST_CHARACTERS = 64_000_000
"""Characters that a sample keeps at most."""


@dataclass(frozen=True, slots=True)
class TextRow:
    """A row that can be learned from. ``text`` is all its text, ``asked`` what it asks (all of it but answers)."""

    number: int
    row: Row
    sample: Sample
    text: str
    asked: str
    label: str | None

    @property
    def origin(self) -> Origin:
        """Where it came from."""
        return self.row.origin


class RowSample:
    """The rows of lowest priority among all that were offered, the priority being a hash of the row's number.

    Rows beyond the limits go in the order of their priority, and so does every later row that would stand behind them:
    what stays is a simple random sample, the same for the same data.
    """

    def __init__(self, rows: int = MOST_ROWS, characters: int = MOST_CHARACTERS) -> None:
        self._most_rows, self._most_characters = rows, characters
        self._held: list[tuple[int, TextRow]] = []
        self._characters = 0
        self._threshold = 2**64

    def offer(self, row: TextRow) -> None:
        """Keep the row, or not."""
        priority = _priority(row.number)
        if priority >= self._threshold:
            return
        bisect.insort(self._held, (priority, row), key=lambda item: item[0])
        self._characters += len(row.text)
        while len(self._held) > 1 and (len(self._held) > self._most_rows or self._characters > self._most_characters):
            self._threshold, gone = self._held.pop()
            self._characters -= len(gone.text)

    def __len__(self) -> int:
        return len(self._held)

    def first(self, rows: int = MOST_ROWS, characters: int = MOST_CHARACTERS) -> list[TextRow]:
        """A random part of the sample within limits (at least one row), in the order of the source."""
        taken: list[TextRow] = []
        held = 0
        for _, row in self._held[:rows]:
            held += len(row.text)
            if taken and held > characters:
                break
            taken.append(row)
        return sorted(taken, key=lambda row: row.number)


def _priority(number: int) -> int:
    return int.from_bytes(hashlib.blake2b(b"inspect%d" % number, digest_size=8).digest(), "big")


def texts_of_rows(rows: Sequence[TextRow]) -> list[str]:
    """All text of each row."""
    return [row.text for row in rows]
