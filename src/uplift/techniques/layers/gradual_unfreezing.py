"""Gradual unfreezing: the top block trains first, and one block more joins it after every share of the run.

When: full fine-tuning of a pretrained model on little data, where a new head would otherwise shake the lower layers.
When not: with much data (all blocks get there anyway), or when the input is new to the model (then the bottom must move first).
Paper: Howard and Ruder 2018, Universal Language Model Fine-tuning for Text Classification (ULMFiT).
Cost: memory below full fine-tuning until the last block joins; time less, as backward passes end at the lowest trained block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr

from uplift.core.capability import Capabilities
from uplift.core.errors import RecipeError
from uplift.core.values import Progress, Signal
from uplift.techniques.partial_training import CHOICE, FROZEN_CLASH, PROMPT_CLASH, TurnTraining


def stages_due(fraction: float, until: float, stages: int) -> int:
    """How many of ``stages`` train at ``fraction`` of the run: evenly spaced, the first at 0, the last at ``until``."""
    return 1 + sum(fraction >= until * stage / (stages - 1) - 1e-9 for stage in range(1, stages))


class GradualUnfreezing(TurnTraining):
    """Head and top block first, then block by block downwards, the embeddings last; what trains keeps its moments."""

    use: Literal["gradual_unfreezing"] = "gradual_unfreezing"
    until: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the run after which everything trains; the blocks join at even distances (0: off, all at once)."""
    down_to: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Lowest block that ever trains, counted from 1 (0: the embeddings too)."""

    claim: ClassVar[str] = "lower blocks stayed bit-equal until their turn"
    capabilities: ClassVar[Capabilities] = Capabilities(
        needs=frozenset({"training"}),
        gives=frozenset({"regroup"}),
        exclusive=frozenset({CHOICE}),
        conflicts={
            "frozen_layers": (FROZEN_CLASH[0], "set `gradual_unfreezing.down_to` to the lowest block that may train"),
            "virtual_prompt": PROMPT_CLASH,
        },
    )
    off: ClassVar[Mapping[str, Any]] = {"until": 0.0}

    _joined: list[str] = PrivateAttr(default_factory=list)

    def stages(self, model: Any) -> list[frozenset[str]]:
        """What joins together, top first: the top block with head and final norm, each lower block, the embeddings."""
        top = len(model.layers)
        if self.down_to > top:
            raise RecipeError(f"`gradual_unfreezing.down_to` is {self.down_to}, but the model has {top} blocks")
        by_depth: dict[int, set[str]] = {}
        for name in self.eligible(model):
            depth = min(model.depth(name), top)
            if depth >= self.down_to:
                by_depth.setdefault(depth, set()).add(name)
        if not by_depth:
            raise RecipeError(
                f"`gradual_unfreezing.down_to: {self.down_to}` leaves nothing to train", fix="choose a lower block"
            )
        return [frozenset(by_depth[depth]) for depth in sorted(by_depth, reverse=True)]

    def training(self, model: Any) -> frozenset[str]:
        """The stages that have joined so far."""
        stages = self.stages(model)
        count = stages_due(0.0, self.until, len(stages)) if self._turn == 0 else self._turn + 1
        return frozenset[str]().union(*stages[:count])

    def observe(self, progress: Progress, metrics: Mapping[str, float]) -> list[Signal]:
        """Let the stages join whose time has come."""
        stages = self.stages(self._model)
        turn = stages_due(progress.fraction, self.until, len(stages)) - 1
        if turn <= self._turn:
            return []
        depth = min(self._model.depth(name) for name in stages[turn])
        signals = self.turn_to(turn, f"everything from {'block ' + str(depth) if depth else 'the embeddings'} upwards trains")
        if signals:
            self._joined.append(f"{'block ' + str(depth) if depth else 'embeddings'} at step {progress.step}")
        return signals

    def state(self) -> dict[str, Any]:
        """What the base keeps, and when blocks joined."""
        return {**super().state(), "joined": list(self._joined)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        super().load_state(state)
        self._joined = list(state["joined"])

    def detail(self) -> str:
        """When blocks joined."""
        return ", ".join(self._joined[-8:])
