"""Rows of Parquet files and of data set folders saved by Hugging Face ``datasets`` (Arrow streams), read in batches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from uplift.core.errors import DataError, Place
from uplift.core.values import Origin
from uplift.data.rows import BadRow, Row, RowProblem, bad_row

BATCH_ROWS = 1024


def read_parquet(path: Path, display: str) -> Iterator[Row | BadRow]:
    """Rows of one Parquet file; the line of an origin is the row number from 1. Raises DataError for a damaged file."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield from batch_rows(file.iter_batches(batch_size=BATCH_ROWS), display)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(display, error) from error


def read_saved_dataset(folder: Path, display: str) -> Iterator[Row | BadRow]:
    """Rows of a folder made by ``Dataset.save_to_disk``.

    Raises DataError for a damaged folder, and for a ``DatasetDict``, which holds several splits: name one of them.
    """
    number = 0
    for file in _arrow_files(folder, display):
        try:
            with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
                for item in batch_rows(iter(stream), display, number):
                    number += 1
                    yield item
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _damaged(f"{display}/{file.name}", error) from error


def is_saved_dataset(folder: Path) -> bool:
    """Whether ``save_to_disk`` made this folder."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def saved_dataset_files(folder: Path) -> list[Path]:
    """The files of a saved data set that hold rows, in order."""
    return _arrow_files(folder, str(folder))


def _arrow_files(folder: Path, display: str) -> list[Path]:
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(child.name for child in folder.iterdir() if (child / "state.json").is_file())
        example = f"path: {display}/{splits[0]}" if splits else ""
        what = f"the folder holds several splits: {', '.join(splits)}"
        raise DataError(what, where=Place(display), fix=f"name one of them, for example `{example}`")
    try:
        names = [entry["filename"] for entry in json.loads((folder / "state.json").read_bytes())["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError("this is not a folder of `save_to_disk`", where=Place(display), why=f"state.json: {error}") from error
    if any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise DataError("state.json names a file outside its folder", where=Place(f"{display}/state.json"))
    return [folder / name for name in names]


def batch_rows(batches: Iterator[pa.RecordBatch], display: str, before: int = 0) -> Iterator[Row | BadRow]:
    """The rows of tables of Arrow; ``before``: how many rows of the same file came earlier."""
    number = before
    for batch in batches:
        try:
            values: list[Any] = batch.to_pylist()
        except (ValueError, OverflowError):
            # Arrow checks text (and dates) only when they are read: find the rows that hold the bad bytes.
            values = [_one_row(batch, index) for index in range(batch.num_rows)]
        for value in values:
            number += 1
            origin = Origin(display, number)
            yield bad_row(origin, value, "") if isinstance(value, RowProblem) else Row(value, origin)


def _one_row(batch: pa.RecordBatch, index: int) -> dict[str, Any] | RowProblem:
    try:
        row: dict[str, Any] = batch.slice(index, 1).to_pylist()[0]
    except UnicodeDecodeError as error:
        return RowProblem("utf8", f"invalid UTF-8: {error.reason}")
    except (ValueError, OverflowError) as error:
        return RowProblem("value", str(error))
    return row


def _damaged(display: str, error: Exception) -> DataError:
    return DataError(
        "the file is damaged or not of this format",
        where=Place(display),
        why=str(error).splitlines()[0] if str(error) else type(error).__name__,
        fix="copy or export it again",
    )
