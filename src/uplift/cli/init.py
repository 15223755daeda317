"""``uplift init FILE``."""

from __future__ import annotations

from pathlib import Path

from uplift.cli import printing
from uplift.verbs.init import init


def init_command(
    file: Path, /, *, directory: Path = Path(), encoding: str | None = None, force: bool = False, json: bool = False
) -> None:
    """Look at a data file and this machine, and write a recipe and a comparison.

    Parameters
    ----------
    file: Path
        The data: JSONL, CSV, Parquet, text, or a saved data set's folder.
    directory: Path
        Where `recipe.yaml` and `comparison.yaml` go.
    encoding: str
        Encoding of the file, if it is not UTF-8 (`cp1252`).
    force: bool
        Overwrite them if they are there.
    json: bool
        Print JSON.
    """
    written = init(file, directory, force, encoding)
    if json:
        content = {"seen": list(written.seen), "recipe": str(written.recipe), "comparison": str(written.comparison)}
        printing.print_json(content | {"goal": written.look.goal, "rows": written.look.rows})
        return
    console = printing.output()
    for line in written.seen:
        console.print(line, markup=False)
    console.print(f"\nwrote {written.recipe} and {written.comparison}", markup=False)
    console.print(f"next: uplift compare {written.comparison}, or uplift run {written.recipe}", markup=False)
