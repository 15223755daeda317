"""Label smoothing: trains towards a target that keeps a small share of probability on every word or class.

When: few or noisy labels; a classifier that is too sure of itself; probabilities are used, not only the best class.
When not: with soft targets of a teacher (they are smooth already); when perplexity is the goal, since it rises.
Paper: Szegedy et al. 2016, Rethinking the Inception Architecture (section 7); Mueller, Kornblith and Hinton 2019.
Cost: memory none; time about none (the head's log-probabilities are there already).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr
from torch import Tensor

from uplift.core.capability import Capabilities
from uplift.core.technique import Technique
from uplift.core.values import Batch, Effect, Pass, Progress, Term, Terms


def smoothing_sum(cross_entropy: Tensor, uniform: Tensor, amount: float) -> Tensor:
    """What to add to a summed cross-entropy H so that it becomes (1 - a) H + a U, with U the sum of mean(-log p)."""
    return amount * (uniform - cross_entropy)


class LabelSmoothing(Technique):
    """Moves the share ``amount`` of each target's probability to a uniform distribution."""

    use: Literal["label_smoothing"] = "label_smoothing"
    amount: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the target that is spread evenly (0: off; 0.05 to 0.2 is usual)."""

    capabilities: ClassVar[Capabilities] = Capabilities(needs=frozenset({"training"}), mutates=frozenset({"targets"}))
    off: ClassVar[Mapping[str, Any]] = {"amount": 0.0}

    _steps: int = PrivateAttr(0)
    _changed: int = PrivateAttr(0)
    _total: float = PrivateAttr(0.0)

    def terms(self, forward: Pass, batch: Batch) -> Terms:
        """The difference between the smoothed and the plain loss, over the same units."""
        if self.amount == 0:
            return {}
        losses = forward.losses
        return {self.use: Term(smoothing_sum(losses.cross_entropy, losses.uniform, self.amount), forward.count, forward.unit)}

    def observe(self, progress: Progress, metrics: Mapping[str, float]) -> list[Any]:
        """Count the steps whose loss it changed, and by how much."""
        change = metrics.get(f"loss_{self.use}", 0.0)
        self._steps, self._changed, self._total = self._steps + 1, self._changed + (change != 0), self._total + abs(change)
        return []

    def state(self) -> dict[str, Any]:
        """The counters behind the proof."""
        return {"steps": self._steps, "changed": self._changed, "total": self._total}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the counters."""
        self._steps, self._changed, self._total = state["steps"], state["changed"], state["total"]

    def effect(self) -> Effect:
        """Mean absolute change of the loss per unit; holds when every step's loss was changed."""
        passed = self._steps > 0 and self._changed == self._steps
        value = self._total / max(1, self._steps)
        return Effect(self.use, "the loss of every step was smoothed", value, passed, f"{self._changed} of {self._steps} steps")
