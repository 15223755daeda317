"""Uplift takes a language model and your data, and gives you a better model with the evidence that it is better.

Names are loaded when first used, so that ``import uplift`` is quick and needs no torch.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uplift.core.errors import UpliftError as UpliftError
    from uplift.core.recipe import Comparison as Comparison, Recipe as Recipe
    from uplift.core.recipe_file import (
        load_any as load_any,
        load_comparison as load_comparison,
        load_recipe as load_recipe,
        to_yaml as to_yaml,
    )
    from uplift.core.technique import Technique as Technique

# Threads that wait for each other spin; where other work holds a core they burn it (docs/decisions.md,
# `python -m bench.threads`). Read by the OpenMP library when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

__version__ = "0.1.0"

_HOMES = {
    "UpliftError": "uplift.core.errors",
    "Recipe": "uplift.core.recipe",
    "Comparison": "uplift.core.recipe",
    "Report": "uplift.core.report",
    "Technique": "uplift.core.technique",
    "load_recipe": "uplift.core.recipe_file",
    "load_comparison": "uplift.core.recipe_file",
    "load_any": "uplift.core.recipe_file",
    "to_yaml": "uplift.core.recipe_file",
    "open_model": "uplift.model.opening",
    "run": "uplift.verbs.run",
    "compare": "uplift.verbs.compare",
    "plan": "uplift.verbs.plan",
    "explain": "uplift.verbs.explain",
    "doctor": "uplift.verbs.doctor",
}
__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    """The public object ``name``, imported now. Raises AttributeError when there is none."""
    if name not in _HOMES:
        raise AttributeError(f"module `uplift` has no attribute `{name}`")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
