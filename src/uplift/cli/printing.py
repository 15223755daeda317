"""How results reach the terminal: tables for people, ``--json`` for programs, progress on the error stream."""

from __future__ import annotations

import json
import sys
from typing import Any

from pydantic import BaseModel
from rich.console import Console


def output() -> Console:
    """Where results go."""
    return Console(highlight=False)


def progress(quiet: bool = False) -> Console:
    """Where progress goes: the error stream, so that ``--json`` output stays clean."""
    return Console(stderr=True, highlight=False, quiet=quiet)


def print_json(value: Any) -> None:
    """Prints a value as one JSON document on standard output."""
    content = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=True, default=str) + "\n")


def number(value: float | None, unit: str = "") -> str:
    """A number for people: three or four significant digits, thousands separated; a dash for none."""
    if value is None:
        return "-"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{text} {unit}".strip()


def size(count: float | None) -> str:
    """Bytes for people."""
    if count is None:
        return "-"
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
