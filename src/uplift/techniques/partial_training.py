"""What techniques share that train only a part of the model: their rules, and the measured proof that the rest stood still.

``PartialTraining``: the same parameters stay frozen for the whole run. ``TurnTraining``: what trains changes in turns.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import PrivateAttr

from uplift.core.capability import Capabilities
from uplift.core.technique import Parameters, Technique
from uplift.core.values import Effect, Group, Signal
from uplift.techniques.fingerprint import checksums, differing
from uplift.techniques.selection import class_head

CHOICE = "the_choice_of_what_trains"
"""The slot of techniques that leave only what they name to train: two of them contradict each other."""
ADAPTER_CLASH = (
    "an adapter freezes all of the model, so there is nothing left to choose from",
    "remove one of the two; where an adapter goes is chosen with `lora.layers`",
)
FROZEN_CLASH = ("both decide which blocks train", "remove one of the two")
PROMPT_CLASH = ("a soft prompt freezes all of the model and trains as a whole, so there are no turns", "remove one of the two")
VECTORS_ONLY = {
    "adapter": ("an adapter freezes the model and trains its own weights in place of the vectors", "remove one of the two"),
    "sparsity": ("only vectors train here, and zeros are made in matrices", "remove one of the two"),
    "layer_weights": ("only vectors train here, and matrices are what is mixed", "remove one of the two"),
}
"""What no technique can be joined with that trains vectors alone."""


def seed_of_run() -> int:
    """The seed that the ``edit`` chain runs under; meaningful inside ``edit`` only, the same on a restart."""
    return torch.initial_seed()


def is_hollow(model: Any) -> bool:
    """Whether the model has shapes but no numbers (a plan is being made)."""
    return bool(model.device.type == "meta")


class PartialTraining(Technique):
    """Base: what ``frozen`` names never trains, and is bit-equal at the end."""

    claim: ClassVar[str] = "frozen weights stayed bit-equal"
    kept_as: ClassVar[str] = "frozen"

    _before: dict[str, int] = PrivateAttr(default_factory=dict)
    _trained: dict[str, int] = PrivateAttr(default_factory=dict)
    _drifted: list[str] = PrivateAttr(default_factory=list)
    _moved: int = PrivateAttr(0)

    @abstractmethod
    def frozen(self, model: Any) -> frozenset[str]:
        """Names of the parameters that must not train."""

    def groups(self, model: Any) -> list[Group]:
        """One rule: the frozen parameters do not train."""
        frozen = self.frozen(model)
        return [Group(frozen, trainable=False)] if frozen else []

    def begin(self, model: Any, parameters: Parameters) -> None:
        """Take checksums of what is frozen, and of what trains."""
        named, frozen = model.parameters_by_name(), self.frozen(model)
        self._before = checksums({name: p for name, p in named.items() if name in frozen})
        self._trained = checksums(parameters)

    def finish(self, model: Any) -> Any:
        """Compare with the checksums."""
        named = model.parameters_by_name()
        self._drifted = differing(self._before, named)
        self._moved = len(differing(self._trained, named))
        return model

    def state(self) -> dict[str, Any]:
        """The checksums from before step 1."""
        return {"before": dict(self._before), "trained": dict(self._trained)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the checksums."""
        self._before, self._trained = dict(state["before"]), dict(state["trained"])

    def detail(self) -> str:
        """What else the proof says, after the counts."""
        return ""

    def effect(self) -> Effect:
        """Share of frozen tensors that are bit-equal; holds at 1 when something else did move."""
        share = 1.0 - len(self._drifted) / max(1, len(self._before))
        passed = bool(self._before) and not self._drifted and self._moved > 0
        counts = f"{len(self._before)} tensors {self.kept_as}; {self._moved} of {len(self._trained)} others moved"
        return Effect(self.use, self.claim, share, passed, "; ".join(filter(None, (counts, self.detail()))))


class VectorTraining(PartialTraining):
    """Base: vectors alone train (biases, norms), at a rate that vectors bear."""

    default_lr: ClassVar[float | None] = 1e-3
    capabilities: ClassVar[Capabilities] = Capabilities(
        needs=frozenset({"training"}),
        gives=frozenset({"vectors_only"}),
        exclusive=frozenset({CHOICE}),
        conflicts=VECTORS_ONLY,
    )


class TurnTraining(Technique):
    """Base: in each turn ``training`` names what trains; the rest stands still, bit for bit, until its turn.

    Only parameters that could train before any rule was applied take part (not the base weights under an adapter).
    """

    claim: ClassVar[str] = "what was frozen stayed bit-equal until its turn"

    _model: Any = PrivateAttr(None)
    _eligible: frozenset[str] | None = PrivateAttr(None)
    _turn: int = PrivateAttr(0)
    _first: dict[str, int] = PrivateAttr(default_factory=dict)
    _held: dict[str, int] = PrivateAttr(default_factory=dict)
    _seen: frozenset[str] = PrivateAttr(frozenset())
    _checked: int = PrivateAttr(0)
    _drifted: int = PrivateAttr(0)
    _moved: int = PrivateAttr(0)

    @abstractmethod
    def training(self, model: Any) -> frozenset[str]:
        """Names of the parameters whose turn it is (others than the eligible ones are passed over)."""

    def eligible(self, model: Any) -> frozenset[str]:
        """Names of what could train when the model was first seen."""
        if self._eligible is None:
            self._eligible = frozenset(name for name, p in model.parameters_by_name().items() if p.requires_grad)
        return self._eligible

    def groups(self, model: Any) -> list[Group]:
        """What trains now, and what does not."""
        eligible = self.eligible(model)
        now = self.training(model) & eligible
        return [rule for rule in (Group(eligible - now, trainable=False), Group(now, trainable=True)) if rule.names]

    def begin(self, model: Any, parameters: Parameters) -> None:
        """Take checksums of everything that takes part."""
        self._model, named = model, model.parameters_by_name()
        self._seen = self.training(model) & self.eligible(model)
        self._first = checksums({name: named[name] for name in sorted(self.eligible(model))})
        self._held = {name: value for name, value in self._first.items() if name not in self._seen}

    def turn_to(self, turn: int, reason: str) -> list[Signal]:
        """Begin another turn: check that what was frozen did not move, and ask for new groups if anything changes."""
        model, eligible = self._model, self.eligible(self._model)
        before = self.training(model) & eligible
        self._turn = turn
        now = self.training(model) & eligible
        if now == before:
            return []
        named = model.parameters_by_name()
        self._drifted += len(differing(self._held, named))
        self._checked += len(self._held)
        newly = checksums({name: named[name] for name in sorted(before - now)})
        self._held = {name: value for name, value in self._held.items() if name not in now} | newly
        self._seen |= now
        return [Signal("regroup", reason)]

    def finish(self, model: Any) -> Any:
        """See that what had a turn moved, and what had none did not (a restored best step may be older than the last turn)."""
        named = model.parameters_by_name()
        changed = set(differing(self._first, named))
        self._moved = len(changed & self._seen)
        self._drifted += len(changed - self._seen)
        return model

    def state(self) -> dict[str, Any]:
        """The turn, and the checksums with what they showed so far."""
        return {
            "turn": self._turn,
            "first": dict(self._first),
            "held": dict(self._held),
            "seen": sorted(self._seen),
            "checked": self._checked,
            "drifted": self._drifted,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self._turn, self._checked, self._drifted = state["turn"], state["checked"], state["drifted"]
        self._first, self._held, self._seen = dict(state["first"]), dict(state["held"]), frozenset(state["seen"])

    def detail(self) -> str:
        """What else the proof says, after the counts."""
        return ""

    def effect(self) -> Effect:
        """Share of frozen tensors that were bit-equal when a turn ended; holds at 1 when one ended and its tensors moved."""
        share = 1.0 - self._drifted / max(1, self._checked)
        passed = self._checked > 0 and self._drifted == 0 and self._moved > 0
        counts = f"{self._checked} comparisons; {self._moved} of {len(self._seen)} tensors that had a turn moved"
        return Effect(self.use, self.claim, share, passed, "; ".join(filter(None, (counts, self.detail()))))


def new_head(model: Any) -> frozenset[str]:
    """Names of the classification head, which starts from random numbers and must always train."""
    return class_head(model.parameters_by_name()) if model.head_kind == "class" else frozenset()
