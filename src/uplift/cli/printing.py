"""How results reach the terminal: tables for people, ``--json`` for programs, progress on the error stream."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from pydantic import BaseModel
from rich.console import Console


def output() -> Console:
    """Where results go."""
    return Console(highlight=False, quiet=not first_process())


def progress() -> Console:
    """Where progress goes: the error stream, so that ``--json`` output stays clean."""
    return Console(stderr=True, highlight=False, quiet=not first_process())


def first_process() -> bool:
    """Whether this process speaks for all: under ``torchrun`` only rank 0 prints."""
    return os.environ.get("RANK", "0") == "0"


def print_json(value: Any) -> None:
    """Prints a value as one JSON document on standard output."""
    if not first_process():
        return
    content = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=True, default=str) + "\n")


def number(value: float | None, unit: str = "") -> str:
    """A number for people: three or four significant digits, thousands separated; a dash for none."""
    if value is None:
        return "-"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{text} {unit}".strip()
