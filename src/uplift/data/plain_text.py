"""Plain text as rows with one column, ``text``: a file gives its paragraphs, a file of a folder is one document."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from uplift.core.values import Origin
from uplift.data.jsonl import decode_line
from uplift.data.lines import LINE_CAP, Line, read_lines
from uplift.data.rows import BadRow, Row, RowProblem, bad_row, check_characters


class _Block:
    """Lines of one row; past the cap only its first line stays, marked too long."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self._size = 0

    def add(self, line: Line) -> None:
        """Append ``line``, or drop it when the block is too long already."""
        self._size += len(line.content)
        if self._size <= LINE_CAP:
            self.lines.append(line)
        elif self.lines:
            self.lines = [replace(self.lines[0], too_long=True)]

    def row(self, display: str) -> Row | BadRow:
        """The block as a row, or the problem of its first bad line."""
        parts = []
        for line in self.lines:
            try:
                text = decode_line(line).removesuffix("\r")
                check_characters(text, "the line")
            except RowProblem as problem:
                return bad_row(Origin(display, line.number), problem, line.content)
            parts.append(text)
        return Row({"text": "\n".join(parts)}, Origin(display, self.lines[0].number))


def read_paragraphs(path: Path, display: str) -> Iterator[Row | BadRow]:
    """Blocks of lines between blank lines; the line of an origin is the first of the block."""
    block = _Block()
    for line in read_lines(path, display):
        if not line.blank:
            block.add(line)
        elif block.lines:
            yield block.row(display)
            block = _Block()
    if block.lines:
        yield block.row(display)


def read_document(path: Path, display: str) -> Iterator[Row | BadRow]:
    """The whole file as one row; a file of white space alone is none."""
    block = _Block()
    for line in read_lines(path, display):
        block.add(line)
    if any(not line.blank for line in block.lines):
        yield block.row(display)
