"""Rows as the measures get them: written to a file and taken in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from uplift.core.source_section import FileSource
from uplift.data.explore.intake import Taken, take_in
from uplift.data.sources import stream_source
from uplift.testing.tiny import write_rows

Take = Callable[..., Taken]


@pytest.fixture
def take(tmp_path: Path) -> Take:
    """Rows -> what one pass over them keeps; options are those of ``take_in``."""

    def taken(rows: Sequence[dict[str, Any]], name: str = "rows.jsonl", **options: Any) -> Taken:
        path = write_rows(tmp_path / name, list(rows))
        return take_in(stream_source(FileSource(path=str(path)), Path()), **options)

    return taken
