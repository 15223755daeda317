"""Personal data in what is shown becomes its kind in brackets: a page is passed on more easily than the data is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from uplift.core.errors import UpliftError
from uplift.core.prepare_section import Pii
from uplift.data.clean.pii import PiiScrubber
from uplift.data.explore.findings import Inspection

KEPT = frozenset(
    {"uplift", "command", "source", "format", "sha256", "place", "test", "train", "tokenizer", "rule", "step", "kind", "notes"}
)
"""Fields that are no text of the data."""


def masked(inspection: Inspection) -> Inspection:
    """The same findings with e-mail addresses, numbers and keys masked in every text they show."""
    scrubber = PiiScrubber(Pii())

    def hide(text: str) -> str:
        return scrubber.judge(0, text).text or text

    try:
        return Inspection.model_validate(_walk(inspection.model_dump(), hide))
    except UpliftError:  # nothing to mask with: the scrubber says so among the steps
        return inspection


def _walk(value: Any, hide: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, dict):
        return {key: each if key in KEPT else _walk(each, hide) for key, each in value.items()}
    return [_walk(each, hide) for each in value] if isinstance(value, list | tuple) else value
