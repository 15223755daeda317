"""``uplift plan RECIPE``."""

from __future__ import annotations

from pathlib import Path

from uplift.cli import printing
from uplift.core.recipe_file import load_recipe
from uplift.verbs.plan import plan


def plan_command(recipe: Path, /, *overrides: str, probe: bool = False, json: bool = False) -> None:
    """Predict memory, time and disk of a recipe.

    Parameters
    ----------
    recipe: Path
        The recipe file.
    overrides: str
        Changes, for example `train.batch_tokens=8192`.
    probe: bool
        Calibrate the prediction on a few real steps.
    json: bool
        Print JSON.
    """
    found = plan(load_recipe(recipe, overrides), recipe.parent, probe=probe)
    printing.print_json(found) if json else printing.output().print(found)
