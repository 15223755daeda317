"""What techniques may ask of the loop: other parameters, another gradient, an early decay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from pydantic import PrivateAttr
from tests.learn.engines import losses, make_engine, same, weights

from uplift.core.capability import Capabilities
from uplift.core.technique import Parameters, Technique
from uplift.core.values import Effect, Group, Progress, Signal


class HeadThenAll(Technique):
    """Trains the last layer until ``step``, then everything but the last layer."""

    use: Literal["head_then_all"] = "head_then_all"
    step: int = 3
    best: int = -1
    _switched: bool = PrivateAttr(False)
    capabilities: ClassVar[Capabilities] = Capabilities(gives=frozenset({"regroup"}))

    def groups(self, model: Any) -> list[Group]:
        names = frozenset(model.parameters_by_name())
        last = frozenset(name for name in names if model.depth(name) == len(model.layers))
        return [Group(names - last, trainable=self._switched), Group(last, trainable=not self._switched)]

    def observe(self, progress: Progress, metrics: Mapping[str, float]) -> list[Signal]:
        found = [Signal("keep_best", "asked for")] if progress.step == self.best else []
        if progress.step == self.step:
            self._switched = True
            found.append(Signal("regroup", "the last layer is done"))
        return found

    def state(self) -> dict[str, Any]:
        return {"switched": self._switched}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._switched = state["switched"]

    def effect(self) -> Effect:
        return Effect(self.use, "switched", float(self._switched), self._switched)


def _all_weights(engine: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in engine.learner.model.parameters_by_name().items()}


def test_what_trains_can_change_in_the_middle(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, techniques=[HeadThenAll(step=3)], train={"steps": 3})
    before, first = _all_weights(engine), set(engine.parameters)
    engine.train()
    at_switch = _all_weights(engine)
    assert {name for name in before if not torch.equal(before[name], at_switch[name])} == first
    other = make_engine(
        tmp_path, "longer", techniques=[HeadThenAll(step=3)], train={"steps": 8, "schedule": {"use": "constant"}}
    )
    frozen_at: dict[str, torch.Tensor] = {}
    other.report = lambda progress, metrics: frozen_at.update(_all_weights(other)) if progress.step == 3 else None
    other.train()
    after = _all_weights(other)
    assert all(torch.equal(frozen_at[name], after[name]) for name in first), "frozen again: bit-equal from there on"
    assert all(not torch.equal(frozen_at[name], after[name]) for name in other.parameters)
    assert set(other.parameters) == set(before) - first
    held = {p for p in other.optimizer.state}
    assert held == set(other.parameters.values()), "no moments are kept for what is frozen"


@pytest.mark.parametrize("cut", [2, 5])
def test_a_change_survives_a_restart(tmp_path: Path, cut: int) -> None:
    whole = make_engine(tmp_path, "whole", techniques=[HeadThenAll(step=3)])
    whole.train()
    part = make_engine(tmp_path, "parts", techniques=[HeadThenAll(step=3)], train={"save_every": 1})
    part.report = lambda progress, metrics: (_ for _ in ()).throw(KeyboardInterrupt) if progress.step == cut + 1 else None
    with pytest.raises(KeyboardInterrupt):
        part.train()
    part.run.close()
    again = make_engine(tmp_path, "parts", techniques=[HeadThenAll(step=3)])
    assert again.resume() and again.state.step == cut
    again.train()
    assert same(_all_weights(whole), _all_weights(again))
    assert losses(whole) == losses(again)


def test_the_best_weights_come_back_for_what_trained_only_later_too(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, techniques=[HeadThenAll(step=3, best=2)])
    best: dict[str, torch.Tensor] = {}
    engine.report = lambda progress, metrics: best.update(_all_weights(engine)) if progress.step == 2 else None
    engine.train()
    assert same(best, _all_weights(engine))


class Twice(Technique):
    """Moves the weights away, asks for gradients there, and comes back."""

    use: Literal["twice"] = "twice"
    away: float = 0.0
    _gradients: list[dict[str, torch.Tensor]] = PrivateAttr(default_factory=list)

    def update(self, parameters: Parameters, progress: Progress, backward: Callable[[], None]) -> None:
        kept = {name: p.detach().clone() for name, p in parameters.items()}
        first = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
        with torch.no_grad():
            for p in parameters.values():
                p.add_(self.away)
        backward()
        self._gradients = [first, {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}]
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(kept[name])

    def effect(self) -> Effect:
        return Effect(self.use, "ran twice", 2.0, True)


def test_a_second_backward_sees_the_same_batch_and_the_same_random_numbers(tmp_path: Path) -> None:
    noisy = {"attention_dropout": 0.3}
    plain = make_engine(tmp_path, "plain", config=noisy)
    plain.train()
    engine = make_engine(tmp_path, "twice", techniques=[Twice()], config=noisy)
    engine.train()
    assert same(weights(plain), weights(engine)), "the same gradients again change nothing"
    moved = make_engine(tmp_path, "moved", techniques=[Twice(away=0.01)], config=noisy)
    moved.train()
    first, second = moved.techniques[0]._gradients  # type: ignore[attr-defined]
    assert not same(first, second)
    assert not same(weights(plain), weights(moved))


class DecayAt(Technique):
    """Asks for the decay at a step."""

    use: Literal["decay_at"] = "decay_at"
    step: int

    def observe(self, progress: Progress, metrics: Mapping[str, float]) -> list[Signal]:
        return [Signal("decay", "asked for")] if progress.step >= self.step else []

    def effect(self) -> Effect:
        return Effect(self.use, "decayed", 1.0, True)


def test_an_early_decay_runs_its_course_and_ends_training(tmp_path: Path) -> None:
    train = {"steps": 40, "schedule": {"use": "wsd", "decay": 0.25, "warmup": 0.0}, "lr": 1e-3}
    whole = make_engine(tmp_path, "whole", train=train)
    assert whole.train().step == 40
    engine = make_engine(tmp_path, "early", train=train, techniques=[DecayAt(step=10)])
    state = engine.train()
    assert state.step == 20, "a quarter of the planned steps follows the signal"
    rates, planned = losses(engine, "lr"), losses(whole, "lr")
    assert rates[:10] == planned[:10]
    assert rates[10:] == pytest.approx(planned[30:])
    assert len(engine.run.events("decay_begun")) == 1
    late = make_engine(tmp_path, "late", train=train, techniques=[DecayAt(step=35)])
    assert late.train().step == 40 and not late.run.events("decay_begun"), "already decaying: nothing to begin"
