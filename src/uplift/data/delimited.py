"""CSV and TSV rows, strictly: a quoting error never swallows the rows behind it unseen."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from uplift.core.errors import DataError, Place
from uplift.core.values import Origin
from uplift.data.jsonl import decode_line
from uplift.data.lines import LINE_CAP, Line, read_lines
from uplift.data.rows import BadRow, Row, RowProblem, bad_row

DELIMITERS = ",;\t"


class _RecordLines:
    """Feeds physical lines to ``csv.reader`` and remembers those of the record being read."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines
        self.taken: list[Line] = []
        self._size = 0
        self.ended = False

    def begin(self) -> None:
        """A new record starts with the next line."""
        self.taken, self._size = [], 0

    def __iter__(self) -> _RecordLines:
        return self

    def __next__(self) -> str:
        line = next(self._lines, None)
        if line is None:
            self.ended = True
            raise StopIteration
        self.taken.append(line)
        self._size += len(line.content)
        if self._size > LINE_CAP:
            raise RowProblem("too_long", f"the record is longer than {LINE_CAP // 2**20} MiB")
        text = decode_line(line)
        if "\0" in text:
            raise RowProblem("nul", "the row holds a NUL character", text.index("\0") + 1)
        return text + "\n"


def read_delimited(
    path: Path, display: str, encoding: str | None = None, *, delimiter: str | None = None
) -> Iterator[Row | BadRow]:
    """Rows of a table whose first record names the columns; all values are text.

    ``delimiter`` None: the one of comma, semicolon and tab that the header has most of. A record that breaks a rule is put
    aside with every line it covers (a quote that is never closed covers the rest of the file). Raises DataError for a
    missing, empty or ambiguous header.
    """
    csv.field_size_limit(LINE_CAP)
    lines = read_lines(path, display, encoding)
    first = next((line for line in lines), None)
    if first is None:
        return
    delimiter = delimiter or _delimiter(first)
    source = _RecordLines(_chain(first, lines))
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    names = _header(reader, display)
    blank: list[Line] = []
    while True:
        source.begin()
        try:
            record = next(reader)
            if not record:
                blank += source.taken
                continue
            if len(record) != len(names):
                raise RowProblem("columns", f"{len(record)} columns where the header has {len(names)}")
            found: list[Row | BadRow] = [Row(dict(zip(names, record, strict=True)), Origin(display, source.taken[0].number))]
        except StopIteration:
            return
        except (csv.Error, RowProblem) as error:
            found = _set_aside(error, source, display)
        yield from (_blank(line, display) for line in blank)
        blank = []
        yield from found


def _chain(first: Line, rest: Iterator[Line]) -> Iterator[Line]:
    yield first
    yield from rest


def _delimiter(header: Line) -> str:
    text = header.content.decode("utf-8", "replace")
    return max(DELIMITERS, key=text.count)


def _header(reader: Iterator[list[str]], display: str) -> list[str]:
    place = Place(display, 1)
    try:
        names = [name.strip() for name in next(reader, [])]
    except (csv.Error, RowProblem) as error:
        raise DataError("the header cannot be read", where=place, why=str(error)) from error
    if not any(names):
        raise DataError("the first line must name the columns", where=place)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or "" in names:
        what = f"two columns are named `{twice[0]}`" if twice and twice[0] else "a column has no name"
        raise DataError(what, where=place, fix="give every column its own name in the first line")
    return names


def _blank(line: Line, display: str) -> BadRow:
    return bad_row(Origin(display, line.number), RowProblem("blank", "a blank line between rows"), "")


def _set_aside(error: Exception, source: _RecordLines, display: str) -> list[Row | BadRow]:
    """One entry per physical line that the broken record covers, so the count of lost rows is honest."""
    problem = error if isinstance(error, RowProblem) else RowProblem("csv_quote", _why(error, source))
    first, *others = source.taken
    result: list[Row | BadRow] = [bad_row(Origin(display, first.number), problem, first.content)]
    detail = f"inside the broken record that starts at line {first.number}"
    for line in others:
        result.append(bad_row(Origin(display, line.number), RowProblem("csv_swallowed", detail), line.content))
    return result


def _why(error: Exception, source: _RecordLines) -> str:
    return "a quote is opened and never closed" if source.ended else str(error)
