"""What techniques share that make the inside of a model resemble a teacher's: pairs of layers, weights of tokens, the proof.

Shapes: T tokens of a packed row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, PrivateAttr, field_validator
from torch import Tensor

from uplift.core.capability import Capabilities
from uplift.core.errors import RecipeError
from uplift.core.technique import Phase
from uplift.core.values import Batch, Effect, Pass, Progress
from uplift.techniques.partial_training import is_hollow
from uplift.techniques.perturbation import sample_of_token
from uplift.techniques.teacher import Head, Taught, Teachers, speaks_words

LayerPair = Annotated[list[Annotated[int, Field(ge=1, le=1000)]], Field(min_length=2, max_length=2)]


class Matched(Taught):
    """Base: one teacher, layers that are compared with its layers, a distance that is followed. Not a technique by itself."""

    teacher: Teachers = []
    """The model to resemble; default: the recipe's own model as it starts."""
    strength: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Weight of the distance (0: off)."""

    phase: ClassVar[Phase] = "precision"
    off: ClassVar[Mapping[str, Any]] = {"strength": 0.0}
    watched: ClassVar[str]
    """What of the layers is kept for it: the slot that it owns."""
    claim: ClassVar[str]
    otherwise: ClassVar[str]
    """What to do when the teacher has another tokenizer."""

    _pairs: list[tuple[int, int]] = PrivateAttr(default_factory=list)
    _steps: int = PrivateAttr(0)
    _first: float = PrivateAttr(0.0)
    _last: float = PrivateAttr(0.0)
    _total: float = PrivateAttr(0.0)

    @field_validator("teacher")
    @classmethod
    def _one_teacher(cls, value: list[Any]) -> list[Any]:
        if len(value) > 1:
            raise ValueError("one model can be resembled at a time")
        return value

    @property
    def active(self) -> bool:
        """Whether anything is pulled."""
        return self.strength > 0

    def declare(self) -> Capabilities:
        """What it needs and costs; nothing when it is off."""
        if not self.active:
            return Capabilities(needs=frozenset({"training"}))
        return Capabilities(
            needs=frozenset({"training"}),
            gives=frozenset({"layer_outputs"}),
            exclusive=frozenset({self.watched}),
            conflicts={
                "growth_in_run": ("the layers that are matched would be others from then on", "grow before training"),
                "head_only": ("only the head trains, and the layers below it stand still", "remove one of the two"),
            },
            passes=1,
            cost=1.1,
        )

    def pairs_of(self, student: int, teacher: int) -> list[tuple[int, int]]:
        """(layer of the model, layer of the teacher), counted from 1, given how many both have."""
        raise NotImplementedError

    def edit(self, model: Any) -> Any:
        """Open the teacher. Raises RecipeError for layers that are not there, and for a teacher with other tokens."""
        if not self.active or is_hollow(model):
            return model
        model = super().edit(model)
        heads: list[Head] = ["language" if speaks_words(spec, self._base_dir) else "class" for spec in self.teacher]
        self.open_all(heads, model.device)
        (teacher,) = self._models
        self.require_same_tokens(model, self.otherwise)
        sizes = (len(model.layers), len(teacher.layers))
        self._pairs = self.pairs_of(*sizes)
        if any(mine > sizes[0] or its > sizes[1] for mine, its in self._pairs):
            why = f"the model has {sizes[0]} layers, the teacher {sizes[1]}"
            raise RecipeError(f"`{self.use}.layers` names a layer that is not there", why=why, fix="count from 1")
        return model

    def observe(self, progress: Progress, metrics: Mapping[str, float]) -> list[Any]:
        """Follow the distance."""
        if self.active and f"loss_{self.use}" in metrics:
            self._last = metrics[f"loss_{self.use}"] / self.strength
            self._first = self._last if self._steps == 0 else self._first
            self._steps, self._total = self._steps + 1, self._total + self._last
        return []

    def state(self) -> dict[str, Any]:
        """The sums behind the proof; what it trains is among the trained weights."""
        return {"steps": self._steps, "first": self._first, "last": self._last, "total": self._total}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the sums."""
        self._steps, self._total = state["steps"], state["total"]
        self._first, self._last = state["first"], state["last"]

    def effect(self) -> Effect:
        """Mean distance; holds when there was one and the teacher stayed bit-equal."""
        value = self._total / max(1, self._steps)
        passed = self._steps >= 2 and value > 0 and self.unchanged
        detail = f"{self._first:.3g} at first, {self._last:.3g} at the end; {self.told()}"
        return Effect(self.use, self.claim, value, passed, detail)


def token_weights(forward: Pass, batch: Batch) -> Tensor:
    """(T,) what each token counts: its target's weight; for a class head, an equal share of each labelled sample."""
    if forward.unit == "tokens":
        return batch.weights[0]
    lengths_N = torch.tensor(batch.lengths, device=batch.ids.device)
    share_N = (batch.labels != -100).float() / lengths_N
    return share_N[sample_of_token(batch.lengths, batch.ids.device)]
