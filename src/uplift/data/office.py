"""DOCX files as rows: the text of a document in its order, tables row by row.

The document part is read as a stream of events straight from the archive, and no tree is built: libraries that build one hold
every picture in memory, take minutes over parts made to hurt them, and leave out text in content controls and inserted text
whose change is still tracked.
"""

from __future__ import annotations

import posixpath
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any
from xml.parsers import expat

from uplift.core.values import Origin
from uplift.data.plain_text import document_row
from uplift.data.rows import BadRow, Row, RowProblem, bad_row

PART_CAP = 64 * 2**20
"""Largest part of a document in bytes, unpacked."""
TEXT_CAP = 16 * 2**20
"""Longest text in characters."""
RATIO = 1000
"""A part that is packed tighter than deflate packs text is a bomb."""
CHUNK = 2**20
"""Bytes parsed at a time; a single tag of many chunks would be looked at again with each."""
MOST_NESTED = 1000
MOST_ELEMENTS = 3_000_000
"""A book of a thousand pages has about one million."""
SMALL_CAP = 2**20
"""Largest part that only says where something is."""
MAIN = "officeDocument/2006/relationships/officeDocument"
STRICT_MAIN = "oclc.org/ooxml/officeDocument/relationships/officeDocument"
BREAKS = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
CELL = " | "
SKIPPED = frozenset({"del", "moveFrom", "Fallback", "instrText"})
"""Elements whose text is not part of the document: removed text, a second form of what was said, field codes."""


def read_docx(path: Path, display: str) -> Iterator[Row | BadRow]:
    """The document as one row with its ``title``; or a bad row: damaged, cut, encrypted, a bomb, or without text."""
    try:
        yield document_row(*_document(path), display)
    except RowProblem as problem:
        yield bad_row(Origin(display, 1), problem, b"")


def is_docx(path: Path) -> bool:
    """Whether an archive holds a document rather than something else."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "[Content_Types].xml" in archive.namelist() and any(name.startswith("word/") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def _document(path: Path) -> tuple[str, dict[str, Any]]:
    with open(path, "rb") as stream:
        if stream.read(8) == b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1":
            raise RowProblem("docx", "this is a file of Word before 2007, or one with a password; save it as .docx without one")
    try:
        with zipfile.ZipFile(path) as archive:
            return _text(archive), {"title": _title(archive)}
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        KeyError,
        OSError,
        RuntimeError,
        ValueError,
    ) as error:
        raise RowProblem("docx", f"damaged, cut or no DOCX file: {_said(error)}") from error
    except expat.ExpatError as error:
        raise RowProblem("docx", f"damaged: {_said(error)}") from error


def _said(error: Exception) -> str:
    return str(error.args[0] if error.args else "").strip() or type(error).__name__


def _open(archive: zipfile.ZipFile, name: str, cap: int) -> IO[bytes]:
    """A part whose size is checked first; zipfile never gives more bytes than the size it declares. Raises KeyError."""
    part = archive.getinfo(name)
    if part.file_size > cap:
        raise RowProblem("too_long", f"{name} is {part.file_size / 2**20:.0f} MiB; at most {cap // 2**20} MiB are read")
    if part.file_size > SMALL_CAP and part.file_size > RATIO * part.compress_size:
        raise RowProblem("bomb", f"{name} is {part.file_size // max(1, part.compress_size)} times its packed size")
    return archive.open(part)


class _Events:
    """Takes the elements of a part. A part that declares a document type, where entities come from, is refused."""

    def __init__(self) -> None:
        self.around: list[str] = []
        """Names, without their namespaces, of the open elements."""
        self._elements = 0

    def start(self, name: str, attributes: Mapping[str, str]) -> None:
        """An element begins."""

    def text(self, text: str) -> None:
        """Characters within the innermost open element."""

    def end(self, name: str) -> None:
        """An element ends."""

    def read(self, archive: zipfile.ZipFile, part: str, cap: int) -> None:
        """Go through a part."""
        parser = expat.ParserCreate(namespace_separator="}")
        parser.buffer_text = True
        parser.StartDoctypeDeclHandler = self._refuse
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self.text
        with _open(archive, part, cap) as stream:
            for chunk in iter(lambda: stream.read(CHUNK), b""):
                parser.Parse(chunk, False)
        parser.Parse(b"", True)

    def _start(self, name: str, attributes: Mapping[str, str]) -> None:
        local = name.rpartition("}")[2]
        self.around.append(local)
        self._elements += 1
        if self._elements > MOST_ELEMENTS:
            raise RowProblem("too_long", f"it has more than {MOST_ELEMENTS // 10**6} million elements")
        if len(self.around) > MOST_NESTED:
            raise RowProblem("docx", f"its elements are nested deeper than {MOST_NESTED}")
        self.start(local, attributes)

    def _end(self, name: str) -> None:
        self.around.pop()
        self.end(name.rpartition("}")[2])

    def _refuse(self, *declared: Any) -> None:
        raise RowProblem("docx", "it declares a document type, which no DOCX file has")


class _MainPart(_Events):
    """Finds the part that holds the document."""

    name = ""

    def start(self, name: str, attributes: Mapping[str, str]) -> None:
        if attributes.get("Type", "").endswith((MAIN, STRICT_MAIN)):
            self.name = posixpath.normpath(attributes.get("Target", "").lstrip("/"))


class _Title(_Events):
    """Finds the title."""

    found = ""

    def text(self, text: str) -> None:
        if self.around[-1] == "title":
            self.found += text


def _title(archive: zipfile.ZipFile) -> str | None:
    if "docProps/core.xml" not in archive.namelist():
        return None
    title = _Title()
    title.read(archive, "docProps/core.xml", SMALL_CAP)
    return " ".join(title.found.split()) or None


def _text(archive: zipfile.ZipFile) -> str:
    """The paragraphs between blank lines; a table's rows are lines, its cells set apart by bars."""
    main = _MainPart()
    main.read(archive, "_rels/.rels", SMALL_CAP)
    if not main.name:
        raise RowProblem("docx", "the archive names no document part")
    reading = _Reading()
    reading.read(archive, main.name, PART_CAP)
    return reading.whole()


class _Reading(_Events):
    """What has been read so far. Tables nest: a table inside a cell becomes part of the cell's text."""

    def __init__(self) -> None:
        super().__init__()
        self._blocks: list[str] = []
        self._paragraphs: list[list[str]] = []
        self._cells: list[list[str]] = []
        self._rows: list[list[str]] = []
        self._tables: list[list[str]] = []
        self._open = {"p": self._paragraphs, "tc": self._cells, "tr": self._rows, "tbl": self._tables}
        self._close: Mapping[str, Callable[[], None]] = {
            "p": self._end_paragraph,
            "tc": self._end_cell,
            "tr": self._end_row,
            "tbl": self._end_table,
        }
        self._size = self._skipped = 0

    def start(self, name: str, attributes: Mapping[str, str]) -> None:
        """Open a paragraph, a table, a row, a cell."""
        if name in SKIPPED:
            self._skipped += 1
        elif self._skipped:
            return
        elif name in self._open:
            self._open[name].append([])
        elif name in BREAKS and self.around[-2:-1] == ["r"]:  # in other places it describes a style
            self._add(BREAKS[name])

    def text(self, text: str) -> None:
        """Text counts in one element alone."""
        if self.around[-1] == "t" and not self._skipped:
            self._add(text)

    def end(self, name: str) -> None:
        """Close it; its text goes to what is around it."""
        if name in SKIPPED:
            self._skipped -= 1
        elif not self._skipped and name in self._close:
            self._close[name]()

    def whole(self) -> str:
        """The text of the document."""
        return "\n\n".join(self._blocks)

    def _end_paragraph(self) -> None:
        self._place("".join(self._paragraphs.pop()).strip("\n"))

    def _end_cell(self) -> None:
        cell = " ".join(" ".join(self._cells.pop()).split())
        if self._rows:
            self._rows[-1].append(cell)

    def _end_row(self) -> None:
        row = CELL.join(self._rows.pop())
        if self._tables:
            self._tables[-1].append(row)

    def _end_table(self) -> None:
        self._place("\n".join(self._tables.pop()))

    def _add(self, text: str) -> None:
        self._size += len(text)
        if self._size > TEXT_CAP:
            raise RowProblem("too_long", f"the document holds more than {TEXT_CAP // 2**20} million characters")
        if self._paragraphs:
            self._paragraphs[-1].append(text)

    def _place(self, block: str) -> None:
        if block.strip():
            (self._cells[-1] if self._cells else self._blocks).append(block)
