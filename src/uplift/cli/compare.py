"""``uplift compare COMPARISON``."""

from __future__ import annotations

from pathlib import Path

from uplift.cli import printing
from uplift.cli.results import show_report
from uplift.core.recipe_file import load_comparison
from uplift.verbs.compare import compare


def compare_command(comparison: Path, /, *overrides: str, json: bool = False) -> int:
    """Run the arms of a comparison under one budget and rank them.

    The same command continues a comparison that was stopped; finished arms are not run again.

    Parameters
    ----------
    comparison: Path
        The comparison file.
    overrides: str
        Changes, for example `budget.seconds=30` or `train.lr=1e-4`.
    json: bool
        Print the report as JSON.
    """
    report = compare(load_comparison(comparison, overrides), comparison.parent, console=printing.progress())
    printing.print_json(report) if json else show_report(report)
    return 0 if report.status == "finished" else 1
