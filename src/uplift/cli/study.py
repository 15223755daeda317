"""``uplift study transfer RECIPE``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cyclopts import App
from pydantic import ValidationError

from uplift.cli import printing
from uplift.core.errors import UsageError
from uplift.core.recipe_file import load_recipe
from uplift.study.transfer import ARMS, Design
from uplift.study.transfer_page import render_transfer_terminal
from uplift.verbs.transfer import transfer

study = App(name="study", help="Studies of many runs: what pretraining is worth, by number of rows.")


@study.command(name="transfer")
def transfer_command(
    recipe: Path,
    /,
    *overrides: str,
    rows: str = "8,32,128,512",
    seeds: int = 3,
    arms: str = ",".join(ARMS),
    blocks: bool = False,
    block_rows: int | None = None,
    min_steps: int = 100,
    scratch_times: float = 1.0,
    scratch_lr: float | None = None,
    json: bool = False,
) -> int:
    """Measure how many labelled rows pretraining saves, and which part of the model carries it.

    The same command continues a study that was stopped; finished runs are not repeated, also when rows or arms are added.

    Parameters
    ----------
    recipe: Path
        The recipe file; it should train all weights.
    overrides: str
        Changes, for example `train.lr=1e-4`.
    rows: str
        Numbers of training rows.
    seeds: int
        Repetitions of each, with other rows and other new weights.
    arms: str
        What is kept of the pretrained weights.
    blocks: bool
        Also draw each block alone anew, at one number of rows.
    block_rows: int
        That number; default: the middle one of `--rows`.
    min_steps: int
        Fewest optimizer steps, however few the rows.
    scratch_times: float
        Times the steps for arms whose body starts from nothing.
    scratch_lr: float
        Learning rate of those arms.
    json: bool
        Print the report as JSON.
    """
    asked = {
        "rows": _numbers(rows),
        "seeds": seeds,
        "arms": tuple(name.strip() for name in arms.split(",") if name.strip()),
        "blocks": blocks,
        "block_rows": block_rows,
        "min_steps": min_steps,
        "scratch_times": scratch_times,
        "scratch_lr": scratch_lr,
    }
    report = transfer(load_recipe(recipe, overrides), recipe.parent, _design(asked), console=printing.progress())
    printing.print_json(report) if json else render_transfer_terminal(report, printing.output())
    return 0 if report.status == "finished" else 1


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise UsageError(f"`{text}` is no list of numbers", where="--rows", fix="for example `--rows 8,32,128`") from error


def _design(asked: dict[str, Any]) -> Design:
    try:
        return Design(**asked)
    except ValidationError as error:
        problem = error.errors()[0]
        key = str(problem["loc"][0]).replace("_", "-")
        raise UsageError(f"{problem['msg'].lower()}", where=f"--{key}", fix="see `uplift study transfer --help`") from error
