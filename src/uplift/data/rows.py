"""A row of a source as read, and a row that was put aside with the reason. Every row is one or the other."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from uplift.core.errors import Place
from uplift.core.values import Origin

NAME_ENCODING = (
    "name the encoding of the file: `encoding: cp1252` beside its `path`, on the command line `--encoding cp1252`"
    " (or latin-1, utf-16, shift_jis, ...)"
)
"""What to do about many rows under the rule ``utf8``."""
EXCERPT = 120
"""Characters of a bad row that are kept for the quarantine file."""


@dataclass(frozen=True)
class Row:
    """One row as read: column -> value, unchanged, and where it came from."""

    values: Mapping[str, Any]
    origin: Origin

    @property
    def id(self) -> str:
        """Hash of the columns and values: equal rows have equal ids, wherever they stand."""
        return content_id(json.dumps(dict(self.values), sort_keys=True, default=str))


@dataclass(frozen=True)
class BadRow:
    """A row put aside. ``rule`` is a stable word (``json``, ``utf8``, ``role``, ...), ``detail`` says what was found.

    ``column`` counts characters from 1 where the format has a position (bytes when the line is not valid text).
    """

    origin: Origin
    rule: str
    detail: str
    column: int | None
    excerpt: str

    @property
    def place(self) -> Place:
        """file:line:column."""
        return Place(self.origin.file, self.origin.line, self.column)

    def __str__(self) -> str:
        return f"{self.place}: {self.rule}: {self.detail}"

    def as_json(self) -> dict[str, Any]:
        """JSON values, one line of the quarantine file."""
        return {
            "file": self.origin.file,
            "line": self.origin.line,
            "column": self.column,
            "rule": self.rule,
            "detail": self.detail,
            "excerpt": self.excerpt,
        }


@dataclass(frozen=True)
class RowSet:
    """What a source gave: ``rows_in`` = rows + quarantined. Rows that ``where`` filters out are not counted at all.

    ``format`` names what was read; ``sha256`` covers the bytes of all files in order; ``notes`` tell what of a folder was not
    read.
    """

    rows: list[Row]
    quarantined: list[BadRow]
    rows_in: int
    format: str
    sha256: str
    notes: tuple[str, ...] = ()


def content_id(content: str) -> str:
    """16 bytes of blake2b in hex: what ids of rows and samples are made of."""
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


class RowProblem(Exception):
    """A row breaks a rule; readers and converters turn it into a ``BadRow``."""

    def __init__(self, rule: str, detail: str, column: int | None = None) -> None:
        super().__init__(detail)
        self.rule, self.detail, self.column = rule, detail, column


def bad_row(origin: Origin, problem: RowProblem, content: str | bytes) -> BadRow:
    """The quarantine entry of a problem, with a printable excerpt around its column."""
    return BadRow(origin, problem.rule, problem.detail, problem.column, excerpt(content, problem.column))


def excerpt(content: str | bytes, column: int | None = None) -> str:
    """At most ``EXCERPT`` characters around ``column``, control characters and invalid bytes escaped."""
    start = max(0, (column or 1) - EXCERPT // 2)
    part = content[start : start + EXCERPT]
    text = part.decode("utf-8", "backslashreplace") if isinstance(part, bytes) else part
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def nearest(word: str, known: Iterable[str]) -> str:
    """``, did you mean `x`?`` for the closest known word, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean `{close[0]}`?" if close else ""


def check_text(value: Any, name: str) -> str:
    """``value`` as the text it must be. Raises RowProblem: missing, wrong type, empty, NUL or a lone surrogate."""
    if value is None:
        raise RowProblem("null", f"`{name}` is null")
    if not isinstance(value, str):
        raise RowProblem("wrong_type", f"`{name}` is {type(value).__name__}, not text")
    if not value.strip():
        raise RowProblem("empty_text", f"`{name}` is empty")
    check_characters(value, name)
    return value


def check_characters(value: str, name: str) -> None:
    """Raises RowProblem for characters that no tokenizer should meet: NUL, and surrogates without a partner."""
    if "\0" in value:
        raise RowProblem("nul", f"`{name}` holds a NUL character")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise RowProblem("surrogate", f"`{name}` holds a lone surrogate, which is not a character")
