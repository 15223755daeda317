"""Linear probe: trains only a new classification head on top of the model, which stays exactly as it is.

When: a fast, strong baseline for classification; to see what the model knows already; before full fine-tuning (first the head).
When not: when the representation itself must change (small models on subtle tasks gain much from LoRA or full fine-tuning).
Paper: Alain and Bengio 2016, Understanding Intermediate Layers; Kumar et al. 2022, Fine-Tuning Can Distort Pretrained Features.
Cost: memory almost none; time one forward per row and epoch, and after the first epoch almost none (hidden states are cached).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import PrivateAttr

from uplift.core.capability import Capabilities
from uplift.core.errors import RecipeError
from uplift.core.technique import Parameters, Technique
from uplift.core.values import Effect, Group
from uplift.techniques.fingerprint import checksums, differing
from uplift.techniques.selection import class_head


class LinearProbe(Technique):
    """Freezes everything but the classification head."""

    use: Literal["linear_probe"] = "linear_probe"

    capabilities: ClassVar[Capabilities] = Capabilities(
        needs=frozenset({"training", "class_head"}),
        gives=frozenset({"head_only"}),
        conflicts={"adapter": ("one trains only the head, the other adapts the layers below it", "remove one of the two")},
    )

    _before: dict[str, int] = PrivateAttr(default_factory=dict)
    _head: dict[str, int] = PrivateAttr(default_factory=dict)
    _drifted: list[str] = PrivateAttr(default_factory=list)
    _moved: int = PrivateAttr(0)

    def groups(self, model: Any) -> list[Group]:
        """One rule: nothing outside the head trains. Raises RecipeError when the model's head is not recognised."""
        names = frozenset(model.parameters_by_name())
        head = class_head(names)
        if not head:
            raise RecipeError("`linear_probe` finds no classification head in this model", fix="use `task.head: classifier`")
        return [Group(names - head, trainable=False)]

    def begin(self, model: Any, parameters: Parameters) -> None:
        """Take checksums of the body and of the head."""
        self._head = checksums(parameters)
        self._before = checksums({name: p for name, p in model.parameters_by_name().items() if name not in parameters})

    def finish(self, model: Any) -> Any:
        """Compare with the checksums."""
        named = model.parameters_by_name()
        self._drifted = differing(self._before, named)
        self._moved = len(differing(self._head, named))
        return model

    def state(self) -> dict[str, Any]:
        """The checksums from before step 1."""
        return {"before": dict(self._before), "head": dict(self._head)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the checksums."""
        self._before, self._head = dict(state["before"]), dict(state["head"])

    def effect(self) -> Effect:
        """Share of body tensors that are bit-equal; holds at 1 when the head moved."""
        share = 1.0 - len(self._drifted) / max(1, len(self._before))
        passed = bool(self._before) and not self._drifted and self._moved > 0
        detail = f"{len(self._before)} body tensors; {self._moved} of {len(self._head)} head tensors moved"
        return Effect(self.use, "only the head moved", share, passed, detail)
