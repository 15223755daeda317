"""Numbers that are not finite: never applied, never committed, logged as they are, and an end when they stay."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file
from tests.learn.engines import losses, make_engine, same, weights

from uplift.core.errors import NumericsError
from uplift.core.technique import Parameters, Technique
from uplift.core.values import Batch, Effect, Pass, Progress, Term, Terms
from uplift.learn.engine import Engine
from uplift.learn.preflight import preflight

STEPS = 6


class Poison(Technique):
    """Puts ``value`` into the loss, one gradient or one weight at the given steps (counted from 1)."""

    use: Literal["poison"] = "poison"
    place: Literal["loss", "gradient", "weight"]
    value: Any
    steps: list[int]

    def terms(self, forward: Pass, batch: Batch) -> Terms:
        if self.place != "loss" or batch.progress.step + 1 not in self.steps:
            return {}
        return {"poison": Term(forward.hidden.sum() * self.value, 1.0, "samples")}

    def gradients(self, parameters: Parameters, progress: Progress) -> None:
        if self.place == "gradient" and progress.step + 1 in self.steps:
            gradient = next(iter(parameters.values())).grad
            assert gradient is not None
            gradient.view(-1)[7] = self.value

    def after_update(self, parameters: Parameters, progress: Progress, lr: float) -> None:
        if self.place == "weight" and progress.step + 1 in self.steps:
            with torch.no_grad():
                next(iter(parameters.values())).view(-1)[7] = self.value

    def effect(self) -> Effect:
        return Effect(self.use, "poisoned", 1.0, True)


def _engine(folder: Path, place: str, value: float, steps: list[int], micro: int = 10_000, **train: Any) -> Engine:
    poison = Poison.model_construct(use="poison", place=place, value=value, steps=steps)
    return make_engine(folder, techniques=[poison], train={"steps": STEPS, "save_every": 1, **train}, micro=micro, validation=0)


def _committed_are_finite(engine: Engine) -> bool:
    files = list(engine.run.checkpoints.glob("step-*/weights.safetensors"))
    return all(torch.isfinite(tensor).all() for file in files for tensor in load_file(file).values())


@pytest.mark.parametrize("micro", [10_000, 32])
@pytest.mark.parametrize("step", [1, 3, STEPS])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("place", ["loss", "gradient"])
def test_a_bad_step_is_skipped_and_told(tmp_path: Path, place: str, value: float, step: int, micro: int) -> None:
    engine = _engine(tmp_path, place, value, [step], micro)
    before: dict[str, torch.Tensor] = {}
    run_step = engine._step

    def watched(indices: list[int]) -> dict[str, float]:
        if engine.state.step + 1 == step:
            before.update(weights(engine))
        metrics = run_step(indices)
        if engine.state.step == step:
            assert same(weights(engine), before), "the bad step changed the weights"
        return metrics

    engine._step = watched  # type: ignore[method-assign]
    state = engine.train()
    assert state.step == STEPS and state.skipped == 1 and state.bad_in_a_row == int(step == STEPS)
    logged = losses(engine, "loss" if place == "loss" else "gradient_norm")
    assert len(logged) == STEPS and [math.isfinite(value) for value in logged] == [n != step for n in range(1, STEPS + 1)]
    told = engine.run.events("bad_step")
    assert len(told) == 1 and f"step {step}" in told[0].text and ("nan" in told[0].text or "inf" in told[0].text)
    assert all(torch.isfinite(tensor).all() for tensor in weights(engine).values())
    assert _committed_are_finite(engine)


def test_the_skipped_step_leaves_no_trace_in_the_optimizer(tmp_path: Path) -> None:
    engine = _engine(tmp_path, "gradient", math.nan, [1])
    engine.train()
    steps = {float(state["step"]) for state in engine.optimizer.state.values()}
    assert steps == {STEPS - 1.0}
    for state in engine.optimizer.state.values():
        assert torch.isfinite(state["exp_avg"]).all() and torch.isfinite(state["exp_avg_sq"]).all()


@pytest.mark.parametrize("place", ["loss", "gradient"])
def test_after_too_many_in_a_row_the_run_stops(tmp_path: Path, place: str) -> None:
    engine = _engine(tmp_path, place, math.nan, [2, 3, 4, 5, 6], bad_steps=2)
    with pytest.raises(NumericsError, match="3 steps in a row") as caught:
        engine.train()
    assert caught.value.exit_code != 0 and "nan" in caught.value.why and caught.value.fix
    logged = losses(engine, "loss" if place == "loss" else "gradient_norm")
    assert [math.isnan(value) for value in logged] == [False, True, True, True], "the last one is logged, too"
    assert all(torch.isfinite(tensor).all() for tensor in weights(engine).values())
    assert _committed_are_finite(engine)


def test_bad_steps_that_are_not_in_a_row_do_not_stop_the_run(tmp_path: Path) -> None:
    engine = _engine(tmp_path, "loss", math.nan, [1, 3, 5], bad_steps=1)
    assert engine.train().skipped == 3


def test_the_count_in_a_row_survives_a_restart(tmp_path: Path) -> None:
    engine = _engine(tmp_path, "loss", math.nan, [2, 3, 4], bad_steps=2)
    engine._over = lambda: engine.state.step == 3  # type: ignore[method-assign]
    engine.train()
    engine.run.close()
    again = _engine(tmp_path, "loss", math.nan, [2, 3, 4], bad_steps=2)
    assert again.resume() and again.state.bad_in_a_row == 2
    with pytest.raises(NumericsError):
        again.train()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("step", [1, 3, STEPS])
def test_a_bad_weight_is_never_committed_and_a_restart_is_clean(tmp_path: Path, value: float, step: int) -> None:
    clean = make_engine(tmp_path, "clean", train={"steps": STEPS}, micro=10_000, validation=0)
    clean.train()
    engine = _engine(tmp_path, "weight", value, [step])
    preflight(engine, None)
    with pytest.raises(NumericsError, match="not finite"):
        engine.train()
    assert _committed_are_finite(engine)
    engine.run.close()
    again = _engine(tmp_path, "weight", value, [])  # the damage was of the moment
    assert again.resume() and again.state.step == step - 1
    again.train()
    assert same(weights(again), weights(clean)) and losses(again) == losses(clean)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_weight_between_saves_stops_the_run(tmp_path: Path, value: float) -> None:
    engine = _engine(tmp_path, "weight", value, [2], save_every=100, bad_steps=1)
    with pytest.raises(NumericsError):
        engine.train()
    assert _committed_are_finite(engine)


def test_a_loss_spike_is_clipped(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, train={"steps": 4, "clip": 1.0}, validation=0)
    before = weights(engine)
    accumulate = engine._accumulate

    def spiked(indices: list[int]) -> dict[str, float]:
        found = accumulate(indices)
        for parameter in engine.parameters.values():
            if parameter.grad is not None and engine.state.step == 1:
                parameter.grad.mul_(1e6)
        return found

    engine._accumulate = spiked  # type: ignore[method-assign]
    engine.train()
    moved = max(float((weights(engine)[name] - before[name]).abs().max()) for name in before)
    assert moved < 0.1 and losses(engine, "gradient_norm")[1] > 1e4
