"""``uplift run RECIPE``."""

from __future__ import annotations

from pathlib import Path

from uplift.cli import printing
from uplift.cli.results import show_report
from uplift.core.recipe_file import load_recipe
from uplift.verbs.run import run


def run_command(recipe: Path, /, *overrides: str, fresh: bool = False, json: bool = False) -> int:
    """Carry out a recipe and report what it gained.

    The same command continues a run that was stopped.

    Parameters
    ----------
    recipe: Path
        The recipe file.
    overrides: str
        Changes, for example `train.lr=1e-4`.
    fresh: bool
        Start again instead of continuing from the last saved step.
    json: bool
        Print the report as JSON.
    """
    report = run(load_recipe(recipe, overrides), recipe.parent, console=printing.progress(), resume=not fresh)
    printing.print_json(report) if json else show_report(report)
    return 0 if report.status == "finished" and report.proven else 1
