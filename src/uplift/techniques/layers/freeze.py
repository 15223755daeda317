"""Freeze: keeps chosen layers or parameters exactly as they were while the rest trains.

When: little data, or a new kind of input or output for which only some layers must change.
When not: when the whole model must shift (new language, new domain); nothing to gain if memory and data are plenty.
Paper: Howard and Ruder 2018, ULMFiT; Lee et al. 2023, Surgical Fine-Tuning.
Cost: memory of gradients and optimizer falls with the frozen share; time falls too when the lowest layers are frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr

from uplift.core.capability import Capabilities
from uplift.core.technique import Parameters, Technique
from uplift.core.values import Effect, Group
from uplift.techniques.fingerprint import checksums, differing
from uplift.techniques.selection import matching

Depth = Annotated[int, Field(ge=0, le=10_000)]


def frozen_depths(layers: int, below: int | None, above: int | None, ratio: float | None) -> set[int]:
    """Depths 1..layers to freeze: the first ``below``, those after the first ``above``, the first share ``ratio``."""
    lower = max(below or 0, round((ratio or 0.0) * layers))
    return {depth for depth in range(1, layers + 1) if depth <= lower or (above is not None and depth > above)}


class Freeze(Technique):
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

    _before: dict[str, int] = PrivateAttr(default_factory=dict)
    _trained: dict[str, int] = PrivateAttr(default_factory=dict)
    _drifted: list[str] = PrivateAttr(default_factory=list)
    _moved: int = PrivateAttr(0)

    def chosen(self, model: Any) -> frozenset[str]:
        """Names of the parameters to freeze. Raises RecipeError when a pattern matches nothing."""
        given = (self.below, self.above, self.ratio, self.embeddings)
        ratio = 0.5 if not self.names and all(option is None for option in given) else self.ratio
        depths = frozen_depths(len(model.layers), self.below, self.above, ratio)
        if self.embeddings or (self.embeddings is None and 1 in depths):
            depths.add(0)
        names = list(model.parameters_by_name())
        return frozenset(name for name in names if model.depth(name) in depths) | matching(names, self.names, self.use)

    def groups(self, model: Any) -> list[Group]:
        """One rule: the chosen parameters do not train."""
        chosen = self.chosen(model)
        return [Group(chosen, trainable=False)] if chosen else []

    def begin(self, model: Any, parameters: Parameters) -> None:
        """Take checksums of what is frozen, and of what trains."""
        named = model.parameters_by_name()
        self._before = checksums({name: named[name] for name in sorted(self.chosen(model))})
        self._trained = checksums(parameters)

    def finish(self, model: Any) -> Any:
        """Compare with the checksums."""
        named = model.parameters_by_name()
        self._drifted = differing(self._before, named)
        self._moved = len(differing(self._trained, named))
        return model

    def state(self) -> dict[str, Any]:
        """The checksums from before step 1."""
        return {"before": dict(self._before), "trained": dict(self._trained)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the checksums."""
        self._before, self._trained = dict(state["before"]), dict(state["trained"])

    def effect(self) -> Effect:
        """Share of frozen tensors that are bit-equal; holds at 1 when something else did move."""
        share = 1.0 - len(self._drifted) / max(1, len(self._before))
        passed = bool(self._before) and not self._drifted and self._moved > 0
        detail = f"{len(self._before)} tensors frozen; {self._moved} of {len(self._trained)} others moved"
        return Effect(self.use, "frozen weights stayed bit-equal", share, passed, detail)
