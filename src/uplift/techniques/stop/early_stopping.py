"""Early stopping: ends training when validation stops improving, and keeps the best weights.

When: almost always when there is validation data and more epochs than needed; it is the cheapest regulariser.
When not: with a warm-up-stable-decay schedule (stopping early misses the gain of the decay); to compare at equal cost.
Paper: Prechelt 1998, Early Stopping - But When?
Cost: memory none; disk one more copy of the trained weights; time of the validations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr

from uplift.core.capability import Capabilities
from uplift.core.technique import Technique
from uplift.core.values import Effect, Progress, Signal

RISING = ("accuracy", "f1", "precision", "recall", "bleu", "chrf", "exact_match")


def best_and_waiting(values: Sequence[float], margins: Sequence[float], sign: float) -> tuple[int, int]:
    """Index of the best value and how many came after it without beating it by their margin. ``sign``: 1 lower is better."""
    best = 0
    for index in range(1, len(values)):
        if sign * values[index] < sign * values[best] - margins[index]:
            best = index
    return best, len(values) - 1 - best


class EarlyStopping(Technique):
    """Stops after ``patience`` evaluations without an improvement by more than the margin."""

    use: Literal["early_stopping"] = "early_stopping"
    metric: str = "validation_loss"
    """What to watch; its standard error is taken from `<metric>_se` when there is one."""
    mode: Literal["auto", "min", "max"] = "auto"
    """Whether lower or higher is better; `auto` knows losses and the usual scores."""
    patience: Annotated[int, Field(ge=1, le=10_000)] = 3
    """Evaluations without improvement before stopping."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """Smallest change that counts as an improvement, in the metric's unit."""
    noise: Annotated[float, Field(ge=0, le=10)] = 0.0
    """An improvement must also exceed so many standard errors of the metric (0: ignore noise)."""
    restore: bool = True
    """Go back to the best weights at the end."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        needs=frozenset({"training", "validation"}), exclusive=frozenset({"early_stopping"})
    )

    _steps: list[int] = PrivateAttr(default_factory=list)
    _values: list[float] = PrivateAttr(default_factory=list)
    _margins: list[float] = PrivateAttr(default_factory=list)
    _best: int = PrivateAttr(-1)
    _stopped: int = PrivateAttr(-1)

    @property
    def sign(self) -> float:
        """1 when lower is better, -1 when higher is."""
        rising = self.mode == "max" or (self.mode == "auto" and any(word in self.metric for word in RISING))
        return -1.0 if rising else 1.0

    def observe(self, progress: Progress, metrics: Mapping[str, float]) -> list[Signal]:
        """At an evaluation: keep the weights when it is the best so far, stop when patience is over."""
        if self.metric not in metrics:
            return []
        error = metrics.get(f"{self.metric}_se", 0.0)
        self._steps.append(progress.step)
        self._values.append(metrics[self.metric])
        self._margins.append(max(self.min_delta, self.noise * error))
        best, waiting = best_and_waiting(self._values, self._margins, self.sign)
        signals = []
        if best != self._best:
            self._best = best
            if self.restore:
                signals.append(Signal("keep_best", f"{self.metric} {self._values[best]:.6g} is the best so far"))
        if waiting >= self.patience and self._stopped < 0:
            self._stopped = len(self._values) - 1
            at = f"best {self._values[best]:.6g} at step {self._steps[best]}"
            reason = f"{self.metric} did not improve in {waiting} evaluations; {at}"
            signals.append(Signal("stop", reason))
        return signals

    def state(self) -> dict[str, Any]:
        """All evaluations so far and what was decided."""
        history = {"steps": list(self._steps), "values": list(self._values), "margins": list(self._margins)}
        return {**history, "best": self._best, "stopped": self._stopped}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the evaluations and decisions."""
        self._steps, self._values, self._margins = list(state["steps"]), list(state["values"]), list(state["margins"])
        self._best, self._stopped = state["best"], state["stopped"]

    def effect(self) -> Effect:
        """Evaluations watched; holds from two on, when replaying them leads to the same best step and decision."""
        seen = len(self._values)
        replayed = [best_and_waiting(self._values[: i + 1], self._margins, self.sign)[1] for i in range(seen)]
        stops = next((i for i, waiting in enumerate(replayed) if waiting >= self.patience), -1)
        best = best_and_waiting(self._values, self._margins, self.sign)[0] if seen else -1
        passed = seen >= 2 and stops == self._stopped and best == self._best
        end = f"stopped at step {self._steps[self._stopped]}" if self._stopped >= 0 else "did not need to stop"
        at = f"; best {self.metric} {self._values[best]:.4g} at step {self._steps[best]}" if seen else ""
        return Effect(self.use, "validation decided when to end", float(seen), passed, end + at)
