"""Data sets of the Hugging Face hub, through its library: rows come in batches from files on disk, code is never run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uplift.core.errors import DataError, Place, ResourceError
from uplift.core.source_section import HubSource
from uplift.data.columnar import BATCH_ROWS, batch_rows
from uplift.data.optional import optional
from uplift.data.rows import BadRow, Row


class HubTable:
    """An opened split; ``files`` hold its rows."""

    def __init__(self, source: HubSource, base_dir: Path) -> None:
        self._name = source.id
        self._table = _load(source, base_dir)
        self.files = [Path(file["filename"]) for file in self._table.cache_files]

    def read(self) -> Iterator[Row | BadRow]:
        """The rows in order."""
        tables = self._table.with_format("arrow").iter(batch_size=BATCH_ROWS)
        yield from batch_rows((batch for table in tables for batch in table.to_batches()), self._name)


def _load(source: HubSource, base_dir: Path) -> Any:
    with optional("reading data sets of the hub"):
        import datasets
    folder = base_dir / Path(source.id).expanduser()
    path = str(folder) if folder.is_dir() else source.id
    place = Place(source.id)
    try:
        return datasets.load_dataset(path, source.name, split=source.split)
    except ConnectionError as error:
        fix = "go online once, so that it is kept on this machine, or name a folder that holds it"
        raise ResourceError(
            "the data set is not on this machine, and the hub cannot be reached", where=place, why=_first(error), fix=fix
        ) from error
    except datasets.exceptions.DatasetNotFoundError as error:
        fix = "check the id; for a data set with conditions, accept them on its page and log in with `hf auth login`"
        raise DataError("the hub has no such data set", where=place, why=_first(error), fix=fix) from error
    except Exception as error:  # the library raises what its many readers raise
        raise DataError(
            "the data set cannot be read", where=place, why=_first(error), fix="check `name` and `split`"
        ) from error


def _first(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip() if lines else type(error).__name__
