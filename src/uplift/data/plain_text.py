"""Plain text as rows with a column ``text``: a file gives its paragraphs, a file of a folder is one document.

Markdown files are always documents; what stands in their front matter becomes columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from uplift.core.errors import RecipeError
from uplift.core.values import Origin
from uplift.core.yaml_reader import plain, read_text
from uplift.data.jsonl import decode_line
from uplift.data.lines import LINE_CAP, Line, read_lines
from uplift.data.rows import BadRow, Row, RowProblem, bad_row, check_characters, check_text

FENCE = "---"
FRONT_MATTER_CAP = 2**16
"""Longest front matter in characters."""


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


def read_paragraphs(path: Path, display: str, encoding: str | None = None) -> Iterator[Row | BadRow]:
    """Blocks of lines between blank lines; the line of an origin is the first of the block."""
    block = _Block()
    for line in read_lines(path, display, encoding):
        if not line.blank:
            block.add(line)
        elif block.lines:
            yield block.row(display)
            block = _Block()
    if block.lines:
        yield block.row(display)


def read_document(path: Path, display: str, encoding: str | None = None) -> Iterator[Row | BadRow]:
    """The whole file as one row; a file of white space alone is none."""
    block = _Block()
    for line in read_lines(path, display, encoding):
        block.add(line)
    if any(not line.blank for line in block.lines):
        yield block.row(display)


def read_markdown(path: Path, display: str, encoding: str | None = None) -> Iterator[Row | BadRow]:
    """The whole file as one row: front matter between two lines ``---`` gives columns, the rest is ``text``."""
    for row in read_document(path, display, encoding):
        if isinstance(row, BadRow):
            yield row
            continue
        text: str = row.values["text"]
        try:
            columns, body = _front_matter(text)
            yield document_row(body, columns, display)
        except RowProblem as problem:
            yield bad_row(row.origin, problem, text)


def document_row(text: str, columns: Mapping[str, Any], display: str) -> Row:
    """A document as a row; ``columns`` that are None stay out. Raises RowProblem: no text, or characters that are none."""
    known = {name: value for name, value in columns.items() if value is not None}
    return Row({"text": check_text(text, "text"), **known}, Origin(display, 1))


def _front_matter(text: str) -> tuple[Mapping[str, Any], str]:
    """(columns, the rest). A first line ``---`` without a second one, or with no keys between them, is a rule drawn in text."""
    if not text.startswith(FENCE + "\n"):
        return {}, text
    head, fence, body = text[len(FENCE) : FRONT_MATTER_CAP].partition(f"\n{FENCE}\n")
    if not fence:
        return {}, text
    body += text[FRONT_MATTER_CAP:]
    try:
        tree, problems = read_text(head + "\n", "front matter")
    except RecipeError as error:
        if not any(":" in line for line in head.splitlines()):
            return {}, text
        raise RowProblem("front_matter", error.what) from error
    if not isinstance(tree.value, dict):
        return {}, text
    if problems or "text" in tree.value:
        raise RowProblem("front_matter", problems[0].what if problems else "the key `text` is taken by the document")
    return plain(tree), body.lstrip("\n")
