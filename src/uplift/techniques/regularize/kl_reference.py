"""KL to the reference: holds the model's predictions near those of a frozen copy of the model it started from.

When: continued training or chat tuning that must not forget how the model speaks; the leash of reward training.
When not: when the model should change a lot; with a new classification head, whose start predicts nothing.
Paper: Jaques et al. 2017, Sequence Tutor; Ziegler et al. 2019, Fine-Tuning Language Models from Human Preferences.
Cost: memory of a second model (weights only, adapters included); time 1.4 of a plain step (one more forward, two more heads).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr

from uplift.core.capability import Capabilities
from uplift.core.technique import Parameters, Technique
from uplift.core.values import Batch, Effect, Pass, Progress, Term, Terms
from uplift.techniques.fingerprint import checksums, differing
from uplift.techniques.frozen_copy import frozen_copy


class KlReference(Technique):
    """Adds ``strength`` times the KL divergence between the starting model's predictions and the trained one's."""

    use: Literal["kl_reference"] = "kl_reference"
    strength: Annotated[float, Field(ge=0, le=1000)] = 0.1
    """Weight of the divergence (0: off; 0.01 to 1 is usual)."""
    direction: Literal["forward", "reverse"] = "forward"
    """`forward`: KL(reference || model), keeps all that the start would say; `reverse`: KL(model || reference), forbids what it
    would not say."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        needs=frozenset({"training", "language_head"}),
        gives=frozenset({"reference"}),
        mutates=frozenset({"predictions"}),
        conflicts={
            "vocabulary": (
                "the starting model knows nothing of tokens that came later",
                "train the new tokens first, and use `kl_reference` in a second run from there",
            )
        },
        passes=1,
        cost=1.3,
    )
    off: ClassVar[Mapping[str, Any]] = {"strength": 0.0}

    _reference: Any = PrivateAttr(None)
    _start: dict[str, int] = PrivateAttr(default_factory=dict)
    _changed: list[str] = PrivateAttr(default_factory=list)
    _steps: int = PrivateAttr(0)
    _total: float = PrivateAttr(0.0)
    _last: float = PrivateAttr(0.0)

    def begin(self, model: Any, parameters: Parameters) -> None:
        """Copy the model as it is before step 1."""
        if self.strength > 0:
            self._reference = frozen_copy(model)
            self._start = checksums(self._reference.parameters_by_name())

    def terms(self, forward: Pass, batch: Batch) -> Terms:
        """The divergence of this batch."""
        if self.strength == 0:
            return {}
        reference = forward.under(self._reference)
        if self.direction == "forward":
            between = reference.divergence(forward, fixed=True)
        else:
            between = forward.divergence(reference)
        return {self.use: Term(self.strength * between, forward.count, forward.unit)}

    def observe(self, progress: Progress, metrics: Mapping[str, float]) -> list[Any]:
        """Follow the divergence."""
        if self.strength > 0:
            self._last = metrics.get(f"loss_{self.use}", 0.0) / self.strength
            self._steps, self._total = self._steps + 1, self._total + self._last
        return []

    def finish(self, model: Any) -> Any:
        """Look whether the copy stayed as it was, and let it go."""
        if self._reference is not None:
            self._changed = differing(self._start, self._reference.parameters_by_name())
            self._reference = None
        return model

    def state(self) -> dict[str, Any]:
        """The sums behind the proof; the copy is the base model itself and is made from it again."""
        return {"steps": self._steps, "total": self._total, "last": self._last}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the sums."""
        self._steps, self._total, self._last = state["steps"], state["total"], state["last"]

    def effect(self) -> Effect:
        """Mean divergence per unit in nats; holds when the model left the reference and the reference stayed bit-equal."""
        value = self._total / max(1, self._steps)
        passed = self._steps >= 2 and value > 0 and bool(self._start) and not self._changed
        same = f"copy changed: {', '.join(self._changed[:3])}" if self._changed else f"{len(self._start)} tensors bit-equal"
        return Effect(self.use, "predictions were held near the start", value, passed, f"{self._last:.3g} at the end; {same}")
