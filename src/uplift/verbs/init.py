"""Looks at a data file and this machine, and writes a commented recipe and a comparison that fit both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from uplift.core.errors import Place, UsageError
from uplift.core.registry import technique_modules
from uplift.core.storage import write_atomically
from uplift.study.first_look import FirstLook, first_look
from uplift.study.machine import measure
from uplift.study.suggestion import suggest


@dataclass(frozen=True)
class Written:
    """What was seen, and the two files that were written."""

    look: FirstLook
    seen: tuple[str, ...]
    recipe: Path
    comparison: Path


def init(file: Path, directory: Path, force: bool = False, encoding: str | None = None) -> Written:
    """Writes ``recipe.yaml`` and ``comparison.yaml`` into ``directory`` for the data in ``file`` (in ``encoding``).

    Raises UsageError when a file is in the way (unless ``force``), DataError when the data cannot be read.
    """
    recipe, comparison = directory / "recipe.yaml", directory / "comparison.yaml"
    for path in (recipe, comparison):
        if path.exists() and not force:
            raise UsageError("this file exists already", where=Place(str(path)), fix="give another --directory, or --force")
    look = first_look(file, encoding)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    suggestion = suggest(look, measure(device), directory, technique_modules())
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(recipe, suggestion.recipe)
    write_atomically(comparison, suggestion.comparison)
    return Written(look, suggestion.seen, recipe, comparison)
