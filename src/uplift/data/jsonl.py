"""Strict JSON rows: what a lenient parser would change in silence is put aside with file, line, column and rule."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uplift.core.errors import DataError, Place
from uplift.core.values import Origin
from uplift.data.lines import LINE_CAP, NO_TEXT_BYTES, Line, read_all, read_lines
from uplift.data.rows import BadRow, Row, RowProblem, bad_row, check_characters

MAX_DEPTH = 64
JSON_CAP = 512 * 2**20
"""Largest ``.json`` file in bytes (it can only be read whole; JSON lines have no limit)."""
BLANKS = " \t\n\r"
WESTERN = "cp1252"
"""The encoding of most text that is not UTF-8; how it would read is shown, so that it can be seen whether it is this one."""
SHOWN_AROUND = 12


class StrictJson:
    """Parses JSON and refuses what readers disagree about.

    Refused: duplicate keys, NaN and Infinity, numbers outside 64 bits, NUL and lone surrogates, nesting deeper than 64.
    """

    def __init__(self) -> None:
        self._flaws: list[RowProblem] = []
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object,
            parse_constant=self._constant,
            parse_int=self._integer,
            parse_float=self._real,
        )

    def parse(self, text: str, start: int = 0) -> tuple[Any, int, RowProblem | None]:
        """The value at ``start``, where it ends, and the first flaw in it. Raises RowProblem when its end cannot be found."""
        self._flaws = []
        try:
            value, end = self._decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            raise RowProblem("json", error.msg, error.pos + 1) from error
        except RecursionError as error:
            raise RowProblem("nesting", f"nested deeper than {MAX_DEPTH}") from error
        self._check_values(value, text, start, end)
        return value, end, self._flaws[0] if self._flaws else None

    def _check_values(self, value: Any, text: str, start: int, end: int) -> None:
        deep = text.count("[", start, end) + text.count("{", start, end) > MAX_DEPTH
        escaped = text.find("\\u", start, end) >= 0
        if deep or escaped:
            try:
                _walk(value, 0)
            except RowProblem as flaw:
                self._flaws.append(flaw)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            self._flaws.append(RowProblem("duplicate_key", f"the key `{twice}` appears twice"))
        return result

    def _constant(self, word: str) -> None:
        self._flaws.append(RowProblem("not_a_number", f"`{word}` is not a JSON number"))

    def _integer(self, digits: str) -> int:
        if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
            self._flaws.append(RowProblem("number_range", f"`{digits[:24]}` does not fit in 64 bits"))
            return 0
        return int(digits)

    def _real(self, digits: str) -> float:
        number = float(digits)
        if not math.isfinite(number):
            self._flaws.append(RowProblem("number_range", f"`{digits[:24]}` is too large"))
        return number


def _walk(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise RowProblem("nesting", f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, str):
        check_characters(value, "the row")
    elif isinstance(value, dict):
        for key, item in value.items():
            check_characters(key, "a key")
            _walk(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _walk(item, depth + 1)


def decode_line(line: Line) -> str:
    """The line as text. Raises RowProblem: too long, or not in its encoding (column in bytes)."""
    if line.too_long:
        raise RowProblem("too_long", f"the line is longer than {LINE_CAP // 2**20} MiB")
    try:
        return line.content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowProblem("utf8", _not_text(line.content, error), error.start + 1) from error


def _not_text(content: bytes, error: UnicodeDecodeError) -> str:
    if content.startswith(NO_TEXT_BYTES, error.start):
        return "bytes that are no text in the encoding of the source"
    around = content[max(0, error.start - SHOWN_AROUND) : error.start + SHOWN_AROUND]
    try:
        read = around.decode(WESTERN)
    except UnicodeDecodeError:
        read = ""
    told = f"; in {WESTERN} this would read {read!r}" if read.isprintable() and read else ""
    return f"invalid UTF-8: {error.reason}{told}"


def read_jsonl(path: Path, display: str, encoding: str | None = None) -> Iterator[Row | BadRow]:
    """One row per line. White space after the last row is no row; a blank line between rows is a bad row (``blank``)."""
    parser = StrictJson()
    blank: range = range(0)
    for line in read_lines(path, display, encoding):
        if line.blank:
            blank = range(blank.start or line.number, line.number + 1)
            continue
        for number in blank:
            yield bad_row(Origin(display, number), RowProblem("blank", "a blank line between rows"), "")
        blank = range(0)
        origin = Origin(display, line.number)
        try:
            yield Row(_parse_row(parser, line), origin)
        except RowProblem as problem:
            yield bad_row(origin, problem, line.content)


def _parse_row(parser: StrictJson, line: Line) -> dict[str, Any]:
    text = decode_line(line)
    start = _skip_blanks(text, 0)
    try:
        value, end, flaw = parser.parse(text, start)
    except RowProblem as problem:
        if problem.rule == "json" and line.last:
            raise RowProblem("cut_line", f"the file ends inside a row: {problem.detail}", problem.column) from problem
        raise
    rest = _skip_blanks(text, end)
    if rest < len(text):
        raise RowProblem("json", "more after the end of the row", rest + 1)
    return _checked_object(value, flaw)


def _checked_object(value: Any, flaw: RowProblem | None) -> dict[str, Any]:
    if flaw:
        raise flaw
    if not isinstance(value, dict):
        raise RowProblem("not_an_object", f"a row must be an object, this is {type(value).__name__}", 1)
    return value


def read_json(path: Path, display: str, encoding: str | None = None) -> Iterator[Row | BadRow]:
    """A list of objects, or objects one after another, spread over lines as you like.

    Raises DataError at file:line:column where the text stops being JSON: rows after that cannot be told apart.
    """
    try:
        text = read_all(path, display, JSON_CAP, encoding).decode("utf-8")
    except UnicodeDecodeError as error:
        fix = "name its encoding in the source (`encoding: cp1252`), or convert it"
        raise DataError(f"the file is not {encoding or 'UTF-8'}", where=Place(display), why=str(error), fix=fix) from error
    parser = StrictJson()
    position = _skip_blanks(text, 0)
    listed = text[position : position + 1] == "["
    position = _skip_blanks(text, position + listed)
    line, counted, first = 1, 0, True
    while position < len(text) and not (listed and text[position] == "]"):
        if listed and not first:
            position = _skip_comma(text, position, display)
        line, counted, first = line + text.count("\n", counted, position), position, False
        try:
            value, end, flaw = parser.parse(text, position)
        except RowProblem as problem:
            raise _not_json(text, (problem.column or position + 1) - 1, display, problem.detail) from problem
        try:
            yield Row(_checked_object(value, flaw), Origin(display, line))
        except RowProblem as problem:
            yield bad_row(Origin(display, line), problem, text[position : min(end, position + 200)])
        position = _skip_blanks(text, end)
    _check_end(text, position, listed, display)


def _skip_blanks(text: str, position: int) -> int:
    while position < len(text) and text[position] in BLANKS:
        position += 1
    return position


def _skip_comma(text: str, position: int, display: str) -> int:
    if text[position] != ",":
        raise _not_json(text, position, display, "Expecting ',' between rows")
    return _skip_blanks(text, position + 1)


def _check_end(text: str, position: int, listed: bool, display: str) -> None:
    if listed and position >= len(text):
        raise _not_json(text, position, display, "the file ends before the list is closed")
    rest = _skip_blanks(text, position + listed)
    if rest < len(text):
        raise _not_json(text, rest, display, "more after the end of the list")


def _not_json(text: str, position: int, display: str, why: str) -> DataError:
    line = text.count("\n", 0, position) + 1
    column = position - text.rfind("\n", 0, position)
    return DataError(
        "the file is not valid JSON", where=Place(display, line, column), why=why, fix="repair it, or use JSON lines"
    )


def holds_json_lines(path: Path, display: str, encoding: str | None = None) -> bool:
    """Whether a ``.json`` file is really JSON lines: its first line with content is a whole object."""
    for line in read_lines(path, display, encoding):
        if not line.blank:
            try:
                return isinstance(_parse_row(StrictJson(), line), dict)
            except RowProblem as problem:
                return problem.rule not in ("json", "cut_line", "not_an_object")
    return False
