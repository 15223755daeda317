"""Freeze: keeps chosen layers or parameters exactly as they were while the rest trains.

When: little data, or a new kind of input or output for which only some layers must change.
When not: when the whole model must shift (new language, new domain); nothing to gain if memory and data are plenty.
Paper: Howard and Ruder 2018, ULMFiT; Lee et al. 2023, Surgical Fine-Tuning.
Cost: memory of gradients and optimizer falls with the frozen share; time falls too when the lowest layers are frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from uplift.core.capability import Capabilities
from uplift.techniques.partial_training import PartialTraining
from uplift.techniques.selection import matching

Depth = Annotated[int, Field(ge=0, le=10_000)]


def frozen_depths(layers: int, below: int | None, above: int | None, ratio: float | None) -> set[int]:
    """Depths 1..layers to freeze: the first ``below``, those after the first ``above``, the first share ``ratio``."""
    lower = max(below or 0, round((ratio or 0.0) * layers))
    return {depth for depth in range(1, layers + 1) if depth <= lower or (above is not None and depth > above)}


class Freeze(PartialTraining):
    """Freezes by depth, share or name; without any option the lower half, embeddings included."""

    use: Literal["freeze"] = "freeze"
    below: Depth | None = None
    """Freeze the first so many layers."""
    above: Depth | None = None
    """Freeze all layers after the first so many."""
    ratio: Annotated[float, Field(ge=0, le=1)] | None = None
    """Freeze this share of the layers, from below (0: off; the default when no other option is given: 0.5)."""
    names: Annotated[list[str], Field(max_length=100)] = []
    """Shell-style patterns of parameter names to freeze as well."""
    embeddings: bool | None = None
    """Freeze the embeddings (with a tied head: the head too); default: when the first layer is frozen."""

    capabilities: ClassVar[Capabilities] = Capabilities(needs=frozenset({"training"}), gives=frozenset({"frozen_layers"}))
    off: ClassVar[Mapping[str, Any]] = {"ratio": 0.0}

    def frozen(self, model: Any) -> frozenset[str]:
        """Names of the parameters to freeze. Raises RecipeError when a pattern matches nothing."""
        given = (self.below, self.above, self.ratio, self.embeddings)
        ratio = 0.5 if not self.names and all(option is None for option in given) else self.ratio
        depths = frozen_depths(len(model.layers), self.below, self.above, ratio)
        if self.embeddings or (self.embeddings is None and 1 in depths):
            depths.add(0)
        names = list(model.parameters_by_name())
        return frozenset(name for name in names if model.depth(name) in depths) | matching(names, self.names, self.use)
