"""Small helpers of messages: the nearest name, and values as they may stand in a sentence."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from typing import Any


def nearest(word: str, known: Iterable[str]) -> str:
    """``did you mean `x`?`` when something is near, else the list of what there is."""
    known = list(known)
    near = difflib.get_close_matches(word[:100], known, n=1)
    if near:
        return f"did you mean `{near[0]}`?"
    return f"one of: {', '.join(known)}" if known else ""


def shown(value: Any, limit: int = 60) -> str:
    """A value as it may stand in a message: short, on one line, in ASCII."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = ascii(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
