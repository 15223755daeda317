"""LISA: trains embeddings, head and final norm all the time, and with them a few random blocks that change every K steps.

When: full fine-tuning that does not fit into memory, and an adapter's rank would bound what can be learned.
When not: when memory is plenty; in runs of few steps, as blocks that freeze lose their moments and start anew later.
Paper: Pan et al. 2024, LISA: Layerwise Importance Sampling for Memory-Efficient Large Language Model Fine-Tuning.
Cost: memory of gradients and moments for the drawn blocks only; time less than full fine-tuning, plus one checksum a turn.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr

from uplift.core.capability import Capabilities
from uplift.core.values import Progress, Signal, derive_seed
from uplift.techniques.partial_training import ADAPTER_CLASH, CHOICE, FROZEN_CLASH, TurnTraining, seed_of_run


def drawn_blocks(seed: int, turn: int, layers: int, blocks: int) -> list[int]:
    """``blocks`` different blocks out of 0..layers-1 for this turn, each equally likely, in order."""
    return sorted(random.Random(derive_seed(seed, "lisa", turn)).sample(range(layers), min(blocks, layers)))


class Lisa(TurnTraining):
    """Draws which blocks train; those that freeze lose their AdamW moments, those drawn twice in a row keep them."""

    use: Literal["lisa"] = "lisa"
    blocks: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """How many blocks train at a time (as many as there are: off); default: 2, in models below 4 blocks half of them."""
    every: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    """Steps until other blocks are drawn."""

    claim: ClassVar[str] = "frozen blocks stayed bit-equal while others trained"
    capabilities: ClassVar[Capabilities] = Capabilities(
        needs=frozenset({"training"}),
        gives=frozenset({"regroup"}),
        exclusive=frozenset({CHOICE}),
        conflicts={"adapter": ADAPTER_CLASH, "frozen_layers": FROZEN_CLASH},
    )
    off: ClassVar[Mapping[str, Any]] = {"blocks": 10_000}

    _seed: int = PrivateAttr(0)
    _visits: list[int] = PrivateAttr(default_factory=list)

    def edit(self, model: Any) -> Any:
        """Take the run's seed; the model stays as it is."""
        self._seed = seed_of_run()
        return model

    def drawn(self, model: Any) -> list[int]:
        """The blocks of this turn, counted from 0."""
        layers = len(model.layers)
        return drawn_blocks(self._seed, self._turn, layers, self.blocks or max(1, min(2, layers // 2)))

    def training(self, model: Any) -> frozenset[str]:
        """Everything outside the blocks, and the drawn blocks."""
        depths = {0, len(model.layers) + 1, *(block + 1 for block in self.drawn(model))}
        return frozenset(name for name in self.eligible(model) if model.depth(name) in depths)

    def observe(self, progress: Progress, metrics: Mapping[str, float]) -> list[Signal]:
        """Count the step for its blocks, and draw anew every so many steps."""
        self._visits = self._visits or [0] * len(self._model.layers)
        for block in self.drawn(self._model):
            self._visits[block] += 1
        turn = progress.step // self.every
        if turn == self._turn:
            return []
        signals = self.turn_to(turn, "other blocks were drawn")
        listed = ", ".join(str(block + 1) for block in self.drawn(self._model))
        return [Signal(signal.kind, f"blocks {listed} train now") for signal in signals]

    def state(self) -> dict[str, Any]:
        """What the base keeps, and the steps that each block has trained."""
        return {**super().state(), "visits": list(self._visits)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        super().load_state(state)
        self._visits = list(state["visits"])

    def detail(self) -> str:
        """How often blocks trained."""
        if not self._visits:
            return ""
        return f"steps trained per block: fewest {min(self._visits)}, most {max(self._visits)} of {len(self._visits)} blocks"
