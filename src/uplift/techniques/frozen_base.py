"""What techniques share that freeze the model and train something beside it: the proof that the model stayed as it was."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import PrivateAttr
from torch import Tensor

from uplift.core.technique import Parameters, Technique
from uplift.core.values import Effect
from uplift.techniques.fingerprint import checksums, differing


class FrozenBase(Technique):
    """Base: the frozen weights stayed bit-equal, and what trains beside them moved. Not a technique by itself."""

    claim: ClassVar[str] = "the adapter moved and the base did not"
    own: ClassVar[tuple[str, ...]] = ()
    """Name parts of what the technique brings along, which may stand still at first and train later."""

    _base: dict[str, int] = PrivateAttr(default_factory=dict)
    _changed: list[str] = PrivateAttr(default_factory=list)
    _moved: float = PrivateAttr(0.0)

    def frozen(self, model: Any, parameters: Parameters) -> dict[str, Tensor]:
        """What must stay as it is, by name: all that is not the technique's own and does not train."""
        return {name: tensor for name, tensor in self._foreign(model).items() if name not in parameters}

    def _foreign(self, model: Any) -> dict[str, Tensor]:
        named = model.parameters_by_name().items()
        return {name: tensor for name, tensor in named if not any(part in name for part in self.own)}

    def distance(self, model: Any) -> float:
        """How far what trains is from where it started: 0 when it changes nothing."""
        raise NotImplementedError

    def detail(self) -> str:
        """What the proof says before it counts the base's tensors."""
        raise NotImplementedError

    def begin(self, model: Any, parameters: Parameters) -> None:
        """Take checksums of the frozen weights."""
        self._base = checksums(self.frozen(model, parameters))

    def finish(self, model: Any) -> Any:
        """Compare the base with its checksums and measure how far the rest went."""
        self._changed = differing(self._base, model.parameters_by_name())
        self._moved = self.distance(model)
        return model

    def state(self) -> dict[str, Any]:
        """The base's checksums from before step 1."""
        return {"base": dict(self._base)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the checksums."""
        self._base = dict(state["base"])

    def effect(self) -> Effect:
        """Distance from the start; holds when there is one and the base is bit-equal."""
        passed = bool(self._base) and not self._changed and self._moved > 0 and math.isfinite(self._moved)
        same = f"base changed: {', '.join(self._changed[:3])}" if self._changed else f"{len(self._base)} base tensors bit-equal"
        return Effect(self.use, self.claim, self._moved, passed, f"{self.detail()}; {same}")
