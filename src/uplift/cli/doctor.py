"""``uplift doctor``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from uplift.cli import printing
from uplift.verbs.doctor import doctor

COLOURS = {"OK": "green", "WARN": "yellow", "FAIL": "red"}


def doctor_command(*, directory: Path = Path("runs"), speed: bool = True, json: bool = False) -> int:
    """Check versions, speed, memory and disk of this machine.

    Parameters
    ----------
    directory: Path
        Where runs would be written.
    speed: bool
        Measure matrix products (about a second).
    json: bool
        Print JSON.
    """
    checks = doctor(directory, speed)
    if json:
        printing.print_json([asdict(check) for check in checks])
    else:
        table = Table("", "what", "found", "what to do", box=None, header_style="bold")
        for check in checks:
            table.add_row(f"[{COLOURS[check.status]}]{check.status}[/]", check.name, check.detail, check.remedy)
        printing.output().print(table)
    return 1 if any(check.status == "FAIL" for check in checks) else 0
