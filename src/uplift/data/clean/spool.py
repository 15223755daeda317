"""Rows on disk between two passes: what does not fit in memory waits in a file that has no name."""

from __future__ import annotations

import base64
import datetime
import decimal
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from uplift.core.disk import explained
from uplift.core.errors import DataError

TYPE = "\0type"
"""Marks a value that JSON has no word for; no reader lets a NUL through in a key."""
_MARK = json.dumps(TYPE)
DATES = (datetime.datetime, datetime.date, datetime.time)


class Spool:
    """Plain values (lists, objects), appended once and read again in order, as often as wanted."""

    def __init__(self, stream: IO[bytes], folder: Path) -> None:
        self._stream, self._folder = stream, folder
        self._held: list[bytes] = []
        self._size = 0

    def append(self, record: Any) -> None:
        """Keep a record. Raises ResourceError when the disk is full."""
        line = to_line(record)
        self._held.append(line)
        self._size += len(line)
        if self._size > 2**20:
            self._flush()

    def __iter__(self) -> Iterator[Any]:
        self._flush()
        self._stream.seek(0)
        yield from map(from_line, self._stream)

    def _flush(self) -> None:
        with explained(self._folder, self._size):
            self._stream.seek(0, 2)
            self._stream.write(b"".join(line + b"\n" for line in self._held))
            self._stream.flush()
        self._held, self._size = [], 0


def to_line(record: Any) -> bytes:
    """A record as JSON in one line. Raises DataError for what a table cannot hold."""
    return json.dumps(record, default=_spelt, separators=(",", ":")).encode()


def from_line(line: bytes) -> Any:
    """The record of a line."""
    return json.loads(line, object_hook=_meant if _MARK.encode() in line else None)


def _spelt(value: Any) -> Any:
    """JSON of a value that a table can hold."""
    if isinstance(value, bytes):
        return {TYPE: "bytes", "value": base64.b64encode(value).decode()}
    if isinstance(value, decimal.Decimal):
        return {TYPE: "decimal", "value": str(value)}
    if isinstance(value, DATES):
        return {TYPE: type(value).__name__, "value": value.isoformat()}
    if isinstance(value, datetime.timedelta):
        return {TYPE: "timedelta", "value": [value.days, value.seconds, value.microseconds]}
    if isinstance(value, Mapping):
        return dict(value)
    kind = type(value).__name__
    raise DataError(f"a value of type {kind} cannot be kept", fix="convert its column to text, or leave it out")


def _meant(value: dict[str, Any]) -> Any:
    if TYPE not in value:
        return value
    kind, content = value[TYPE], value["value"]
    if kind == "bytes":
        return base64.b64decode(content)
    if kind == "decimal":
        return decimal.Decimal(content)
    if kind == "timedelta":
        return datetime.timedelta(*content)
    return getattr(datetime, kind if kind in {"datetime", "date", "time"} else "datetime").fromisoformat(content)
