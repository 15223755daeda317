"""Values that say when: ISO 8601 dates and times, or plain numbers."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from typing import Any

from uplift.data.rows import RowProblem

Moment = tuple[str, int | float]
"""("date", microseconds since 1970) or ("number", the number)."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def moment(value: Any, name: str) -> Moment:
    """When ``value`` is. A date is its first instant; a time without a zone is UTC. Raises RowProblem."""
    if isinstance(value, str):
        value = _spelled(value.strip(), name)
    if isinstance(value, datetime):
        return "date", _microseconds(value)
    if isinstance(value, date):
        return "date", _microseconds(datetime(value.year, value.month, value.day))
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return "number", value
    raise RowProblem("time", f"`{name}` is {str(value)[:40]!r}, which is neither a date nor a number")


def _spelled(text: str, name: str) -> int | float | datetime:
    """A number, or a date as ISO 8601 writes it: `20240131` alone is a number, which orders as the date does."""
    for read in (int, float, datetime.fromisoformat):
        try:
            found: int | float | datetime = read(text)
            return found
        except (ValueError, OverflowError):
            continue
    raise RowProblem("time", f"`{name}` is {text[:40]!r}, which is neither an ISO date nor a number")


def _microseconds(when: datetime) -> int:
    elapsed = (when if when.tzinfo else when.replace(tzinfo=UTC)) - EPOCH
    return (elapsed.days * 86_400 + elapsed.seconds) * 1_000_000 + elapsed.microseconds
