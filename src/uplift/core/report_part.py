"""What all reports are made of: finite numbers, counts, numbers with an interval."""

from __future__ import annotations

import math
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite_or_none)]
"""A finite float, or None where the measured number was not finite."""
Count = Annotated[int, Field(ge=0)]


class ReportPart(BaseModel):
    """Base of all report objects: frozen, unknown keys refused, no infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Interval(ReportPart):
    """A number with its 95 % interval."""

    value: Number
    low: Number = None
    high: Number = None

    @model_validator(mode="after")
    def _ends_in_order(self) -> Self:
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"interval ends in the wrong order: {self.low} > {self.high}")
        return self


class Difference(Interval):
    """First minus second on the same items; ``p`` is the p-value of the paired test ``method``."""

    p: Number = None
    method: str = ""
