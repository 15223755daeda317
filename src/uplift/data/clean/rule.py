"""A rule that a text, or a line of it, must keep to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from uplift.core.prepare_section import RuleSet
from uplift.data.clean.measures import Measures

Unit = Literal["", "share", "words", "characters", "sentences", "per token"]


@dataclass(frozen=True)
class Rule:
    """``set``: where it comes from; ``meaning``: what goes; ``default``: its threshold, None if it has none.

    ``bound``: a text goes if ``measure`` is below the threshold (``least``) or above it (``most``). Rules on lines have no
    ``measure``: they change the text before it is measured.
    """

    name: str
    set: RuleSet
    meaning: str
    default: float | None = None
    unit: Unit = ""
    bound: Literal["least", "most"] = "most"
    measure: Callable[[Measures], float] | None = None

    @property
    def on_lines(self) -> bool:
        """Whether it takes lines out of a text that stays."""
        return self.measure is None


def by_name(*rules: Rule) -> dict[str, Rule]:
    """Rules by their names, in this order."""
    return {rule.name: rule for rule in rules}
