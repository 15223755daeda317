"""SMART: predictions barely change under a small attack on the embeddings, nor from one update of the weights to the next.

When: fine-tuning a large model on few rows, where it would soon know them by heart; language modelling and classification.
When not: when time is short; where the model must react to small differences of the input.
Paper: Jiang et al. 2020, SMART: Robust and Efficient Fine-Tuning for Pre-trained Natural Language Models.
Cost: memory of two graphs of the batch at once, with `proximal` a second model (weights only); time 2 of a plain step, 0.65
(adapter: 0.95) more for each step of the search, and 0.33 more with `proximal`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from uplift.core.capability import Capabilities
from uplift.core.technique import Parameters
from uplift.core.values import Batch, Effect, Pass, Progress, Term, Terms
from uplift.techniques.frozen_copy import frozen_copy
from uplift.techniques.perturbation import DivergenceAttack, perturbation, project, with_cost


class Smart(DivergenceAttack):
    """Adds ``weight`` times the divergence (both directions) between clean and attacked predictions, gradients reaching both.

    With ``proximal`` also the divergence from a teacher whose weights are an exponential average of the model's: the Bregman
    proximal point method with momentum.
    """

    use: Literal["smart"] = "smart"
    proximal: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Weight of the divergence from the averaged teacher (0: no teacher; 1 in the paper)."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """How much of the teacher's weights stays at each step."""

    symmetric: ClassVar[bool] = True
    off: ClassVar[Mapping[str, Any]] = {"weight": 0.0, "proximal": 0.0}

    _teacher: Any = PrivateAttr(None)
    _moved: set[str] = PrivateAttr(default_factory=set)
    _away: Any = PrivateAttr(0.0)

    def declare(self) -> Capabilities:
        """The attack's passes and cost, and those of a teacher."""
        attack, teacher = super().declare(), self.proximal > 0
        return with_cost(attack, passes=attack.passes + teacher, cost=attack.cost + teacher)

    def begin(self, model: Any, parameters: Parameters) -> None:
        """Make the teacher, equal to the model."""
        if self.proximal > 0:
            self._teacher = frozen_copy(model)

    def terms(self, forward: Pass, batch: Batch) -> Terms:
        """The divergence under the attack, and from the teacher."""
        terms: Terms = {}
        if self.weight > 0 and self.eps > 0:
            attacked, first = self.divergence_near(forward, batch)
            between = forward.divergence(attacked, symmetric=True)
            self.count(first, between)
            terms[self.use] = Term(self.weight * between, forward.count, forward.unit)
        if self.proximal > 0:
            between = forward.divergence(forward.under(self._teacher), symmetric=True)
            self._away = self._away + between.detach().double()
            terms[f"{self.use}_proximal"] = Term(self.proximal * between, forward.count, forward.unit)
        return terms

    def advance(self, delta_1TD: Tensor, gradient_1TD: Tensor, size_N: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """A full step along the gradient, brought back into the ball (1, T, D)."""
        return project(delta_1TD + perturbation(gradient_1TD, size_N, lengths), size_N, lengths)

    @torch.no_grad()
    def after_update(self, parameters: Parameters, progress: Progress, lr: float) -> None:
        """Move the teacher towards the model; what trains later starts from its value when first seen, the copy's own."""
        if self._teacher is None:
            return
        self._moved |= parameters.keys()
        named = self._teacher.parameters_by_name()
        names = sorted(parameters)
        torch._foreach_lerp_([named[name] for name in names], [parameters[name] for name in names], 1.0 - self.momentum)

    def finish(self, model: Any) -> Any:
        """Let the teacher go."""
        self._teacher = None
        return model

    def state(self) -> dict[str, Any]:
        """The sums behind the proof, and those of the teacher's weights that moved."""
        named = self._teacher.parameters_by_name() if self._teacher is not None else {}
        teacher = {name: named[name].detach() for name in sorted(self._moved) if name in named}
        return {**super().state(), "away": float(self._away), "teacher": teacher}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore both."""
        super().load_state(state)
        self._away, self._moved = state["away"], set(state["teacher"])
        for name, value in state["teacher"].items():
            self._teacher.parameters_by_name()[name].copy_(value)

    def effect(self) -> Effect:
        """The attack against noise of its size; with a teacher, the model must have moved away from it too."""
        attack = super().effect()
        if self.proximal == 0:
            return attack
        away = float(self._away)
        passed = away > 0 and (attack.passed or self.weight == 0 or self.eps == 0)
        return Effect(self.use, attack.claim, attack.value, passed, f"{attack.detail}; {away:.3g} from the teacher")
