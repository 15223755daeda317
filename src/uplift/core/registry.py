"""Finds techniques by file name: ``use: lora`` is the class in ``uplift/techniques/*/lora.py``; plugins by entry point."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import importlib.util
import inspect
from functools import cache
from pathlib import Path

from uplift.core.errors import RecipeError
from uplift.core.technique import Technique

PACKAGE = "uplift.techniques"


@cache
def technique_modules() -> dict[str, str]:
    """``use`` name -> module path of every technique, without importing any of them."""
    spec = importlib.util.find_spec(PACKAGE)
    found: dict[str, str] = {}
    for root in spec.submodule_search_locations or [] if spec else []:
        for file in sorted(Path(root).glob("*/*.py")):
            if not file.stem.startswith("_"):
                found[file.stem] = f"{PACKAGE}.{file.parent.name}.{file.stem}"
    for entry in importlib.metadata.entry_points(group=PACKAGE):
        found[entry.name] = entry.value.partition(":")[0]
    return found


def technique_class(use: str) -> type[Technique]:
    """The technique class named ``use``. Raises RecipeError with the nearest name when there is none."""
    modules = technique_modules()
    if use not in modules:
        near = difflib.get_close_matches(use, modules, n=1)
        fix = f"did you mean `{near[0]}`?" if near else f"one of: {', '.join(sorted(modules))}"
        raise RecipeError(f"there is no technique `{use}`", fix=fix)
    module = importlib.import_module(modules[use])
    classes = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Technique) and value.__module__ == module.__name__
    ]
    named = [value for value in classes if value.model_fields["use"].default == use]
    if len(named) != 1:
        raise RecipeError(f"{modules[use]} must define exactly one technique with `use: {use}`")
    return named[0]


def technique_theme(use: str) -> str:
    """The theme folder of a technique (``adapt``, ``regularize``, ...)."""
    return technique_modules()[use].split(".")[-2]
