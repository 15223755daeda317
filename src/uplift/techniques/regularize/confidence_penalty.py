"""Confidence penalty: rewards predictions that keep some entropy, so that the model does not become too sure of itself.

When: as label smoothing, but the model itself chooses where the rest of the probability goes; small or noisy labels.
When not: when perplexity is the goal, since it rises; for models that are not sure enough already.
Paper: Pereyra et al. 2017, Regularizing Neural Networks by Penalizing Confident Output Distributions.
Cost: memory none (entropies are taken in chunks); time of one more pass of the head, forward and backward.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr
from torch import Tensor

from uplift.core.capability import Capabilities
from uplift.core.technique import Technique
from uplift.core.values import Batch, Effect, Pass, Progress, Term, Terms


def penalty_sum(entropy: Tensor, beta: float) -> Tensor:
    """What to add to a summed cross-entropy: ``-beta H``, with H the sum of the predictions' entropies in nats."""
    return -beta * entropy


class ConfidencePenalty(Technique):
    """Subtracts ``beta`` times the entropy of the predictions from the loss."""

    use: Literal["confidence_penalty"] = "confidence_penalty"
    beta: Annotated[float, Field(ge=0, le=100)] = 0.1
    """Weight of the entropy (0: off; 0.05 to 0.3 is usual)."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        needs=frozenset({"training"}), mutates=frozenset({"confidence"}), cost=0.3
    )
    off: ClassVar[Mapping[str, Any]] = {"beta": 0.0}

    _steps: int = PrivateAttr(0)
    _rewarded: int = PrivateAttr(0)
    _total: float = PrivateAttr(0.0)

    def terms(self, forward: Pass, batch: Batch) -> Terms:
        """Minus beta times the entropy, over the units of the task's loss."""
        if self.beta == 0:
            return {}
        return {self.use: Term(penalty_sum(forward.entropy(), self.beta), forward.count, forward.unit)}

    def observe(self, progress: Progress, metrics: Mapping[str, float]) -> list[Any]:
        """Add up the entropies that were rewarded."""
        reward = -metrics.get(f"loss_{self.use}", 0.0)
        self._steps, self._rewarded, self._total = self._steps + 1, self._rewarded + (reward > 0), self._total + reward
        return []

    def state(self) -> dict[str, Any]:
        """The sums behind the proof."""
        return {"steps": self._steps, "rewarded": self._rewarded, "total": self._total}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the sums."""
        self._steps, self._rewarded, self._total = state["steps"], state["rewarded"], state["total"]

    def effect(self) -> Effect:
        """Mean reward per unit in nats; holds when every step's loss had one."""
        value = self._total / max(1, self._steps)
        passed = self._steps > 0 and self._rewarded == self._steps
        entropy = f"mean entropy {value / self.beta:.3g} nats" if self.beta else "no reward"
        return Effect(self.use, "unsure predictions were rewarded", value, passed, f"{self._steps} steps, {entropy}")
