"""``uplift eval MODEL RECIPE``."""

from __future__ import annotations

from pathlib import Path

from uplift.cli import printing
from uplift.cli.results import show_evaluation
from uplift.core.recipe_file import load_recipe
from uplift.verbs.evaluate import evaluate


def eval_command(model: str, recipe: Path, /, *overrides: str, json: bool = False) -> None:
    """Measure any model on the test part of a recipe.

    Parameters
    ----------
    model: str
        A run's folder, a model folder, a GGUF file or a hub id.
    recipe: Path
        The recipe file; its data, task and evaluation are used.
    overrides: str
        Changes, for example `evaluate.limit=500`.
    json: bool
        Print JSON.
    """
    found = evaluate(model, load_recipe(recipe, overrides), recipe.parent, console=printing.progress())
    printing.print_json(found) if json else show_evaluation(found)
