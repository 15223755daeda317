"""Where cleaned rows go: a folder with the rows and lists of what was removed, changed and quarantined, or memory."""

from __future__ import annotations

import base64
import csv
import datetime
import decimal
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from uplift.core.errors import DataError
from uplift.core.storage import PieceWriter, scratch_file
from uplift.data.clean.pipeline import Changed, Record, Removed
from uplift.data.clean.spool import Spool
from uplift.data.rows import BadRow, Row

OutputFormat = Literal["jsonl", "csv", "parquet"]
TableWriter = Callable[[Spool, Sequence[str], PieceWriter], None]
"""Writes a table: its rows, its columns, and where to."""
GROUP_ROWS = 5000
"""Rows of a Parquet row group."""


@dataclass
class Collected:
    """An outlet that keeps everything in memory. ``values``: whether the rows themselves are wanted."""

    values: bool = True
    rows: list[Row] = field(default_factory=list)
    dropped: list[Removed] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    altered: list[Changed] = field(default_factory=list)

    def kept(self, record: Record) -> None:
        """A row that passed all steps."""
        if self.values:
            self.rows.append(Row(record.values, record.origin))

    def removed(self, row: Removed) -> None:
        """A row that was dropped."""
        self.dropped.append(row)

    def quarantined(self, row: BadRow) -> None:
        """A row that could not be worked on."""
        self.bad.append(row)

    def changed(self, row: Changed) -> None:
        """A row that was changed."""
        self.altered.append(row)


class Folder:
    """An outlet that writes into a folder: ``data.*``, ``removed.jsonl``, ``changed.jsonl``, ``quarantine.jsonl``.

    Use as a context manager; ``finish`` writes what can only be written when all rows are known.
    """

    def __init__(self, folder: Path, format: OutputFormat, scratch: Path) -> None:
        self._folder, self._scratch = folder, scratch
        self.name = f"data.{format}"
        self._format = format
        self._stack = ExitStack()
        self.rows = 0

    def __enter__(self) -> Folder:
        self._data = self._file(self.name)
        self._lists = {name: self._file(f"{name}.jsonl") for name in ("removed", "changed", "quarantine")}
        self._table: Table = JsonLines(self._data)
        if self._format != "jsonl":
            stream = self._stack.enter_context(scratch_file(self._scratch))
            self._table = Waiting(
                Spool(stream, self._scratch), self._data, write_csv if self._format == "csv" else write_parquet
            )
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _file(self, name: str) -> PieceWriter:
        return self._stack.enter_context(PieceWriter(self._folder / name))

    def kept(self, record: Record) -> None:
        """A row that passed all steps."""
        self.rows += 1
        self._table.add(record.values)

    def removed(self, row: Removed) -> None:
        """A row that was dropped."""
        self._list("removed", row.as_json())

    def quarantined(self, row: BadRow) -> None:
        """A row that could not be worked on."""
        self._list("quarantine", row.as_json())

    def changed(self, row: Changed) -> None:
        """A row that was changed."""
        self._list("changed", row.as_json())

    def finish(self) -> str:
        """Write the rest; gives the sha256 of the rows' file."""
        self._table.finish()
        return self._data.sha256()

    def _list(self, name: str, content: Mapping[str, Any]) -> None:
        self._lists[name].write(json_line(content))


class Table(Protocol):
    """A file of rows in the making."""

    def add(self, values: Mapping[str, Any]) -> None:
        """One more row."""

    def finish(self) -> None:
        """All rows are there."""


class JsonLines:
    """JSON lines, written at once."""

    def __init__(self, stream: PieceWriter) -> None:
        self._stream = stream

    def add(self, values: Mapping[str, Any]) -> None:
        """One line."""
        self._stream.write(json_line(values))

    def finish(self) -> None:
        """Nothing is left to do."""


class Waiting:
    """A format whose beginning depends on all rows (columns, types): they wait on disk."""

    def __init__(self, spool: Spool, stream: PieceWriter, write: TableWriter) -> None:
        self._spool, self._stream, self._write = spool, stream, write
        self._columns: dict[str, None] = {}

    def add(self, values: Mapping[str, Any]) -> None:
        """Keep a row."""
        self._columns |= dict.fromkeys(values)
        self._spool.append(dict(values))

    def finish(self) -> None:
        """Write all rows."""
        self._write(self._spool, list(self._columns), self._stream)


# -- JSON lines --------------------------------------------------------------------------------------------------------
def json_line(values: Mapping[str, Any]) -> bytes:
    """A row as one line of strict JSON: dates in ISO form, bytes in base64, numbers that are not finite null."""
    try:
        text = json.dumps(values, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:
        text = json.dumps(_finite(values), ensure_ascii=False, allow_nan=False, default=_plain)
    # Half a surrogate pair, which no text should hold, is spelt as JSON spells it.
    return text.encode("utf-8", "backslashreplace") + b"\n"


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | datetime.timedelta):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    kind = type(value).__name__
    raise DataError(f"a value of type {kind} has no place in JSON", fix="write `--format parquet`, or leave the column out")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


# -- tables ------------------------------------------------------------------------------------------------------------
def write_csv(rows: Spool, columns: Sequence[str], stream: PieceWriter) -> None:
    """A table with a header; what is missing is empty. Raises DataError for a value that holds others."""
    held = io.StringIO()
    plain = csv.writer(held, lineterminator="\n")
    # A carriage return is only read back inside quotes.
    quoted = csv.writer(held, lineterminator="\n", quoting=csv.QUOTE_ALL)
    plain.writerow(columns)
    for row in rows:
        cells = [_cell(row.get(name), name) for name in columns]
        (quoted if any("\r" in cell for cell in cells) else plain).writerow(cells)
        if held.tell() > 2**20:
            stream.write(held.getvalue().encode())
            held.seek(0)
            held.truncate()
    stream.write(held.getvalue().encode())


def _cell(value: Any, name: str) -> str:
    if isinstance(value, list | Mapping):
        fix = "write `--format jsonl` or `--format parquet`"
        raise DataError(f"column `{name}` holds lists or objects, which CSV has no place for", fix=fix)
    if value is None or isinstance(value, str):
        return value or ""
    return str(_plain(value) if isinstance(value, bytes | datetime.date | datetime.time) else value)


def write_parquet(rows: Spool, columns: Sequence[str], stream: PieceWriter) -> None:
    """A Parquet file whose types fit all rows. Raises DataError for a column that holds values of different kinds."""
    try:
        schema = pa.schema([])
        for group in _groups(rows, columns):
            found = pa.Table.from_pylist(group).schema
            schema = pa.unify_schemas([schema, found], promote_options="permissive")
        schema = pa.schema([schema.field(name) for name in columns])
        with pq.ParquetWriter(stream, schema) as writer:
            for group in _groups(rows, columns):
                writer.write_table(pa.Table.from_pylist(group, schema=schema))
    except (pa.ArrowException, OverflowError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        fix = "write `--format jsonl`, which takes any values"
        raise DataError("the rows do not fit into one Parquet table", why=why, fix=fix) from error


def _groups(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    for row in rows:
        group.append({name: row.get(name) for name in columns})
        if len(group) == GROUP_ROWS:
            yield group
            group = []
    if group:
        yield group
