"""Memory shortage: the micro-batch is halved, the step is done again, and the numbers stay the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.learn.engines import losses, make_engine, weights

from uplift.core.errors import ResourceError
from uplift.core.values import Batch
from uplift.learn.engine import Engine
from uplift.learn.preflight import preflight

ERRORS: dict[str, Callable[[], BaseException]] = {
    "torch": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cpu": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried"),
    "python": MemoryError,
}


def _short_of_memory(engine: Engine, most: int, error: Callable[[], BaseException], first_step: int = 0) -> list[int]:
    """Let forwards of more than ``most`` tokens fail, in the backward half of the time; returns the sizes tried."""
    forward, tried = engine.learner.forward, []

    def failing(batch: Batch) -> object:
        tried.append(sum(batch.lengths))
        result = forward(batch)
        if sum(batch.lengths) > most and engine.state.step >= first_step:
            raise error()
        return result

    engine.learner.forward = failing  # type: ignore[method-assign, assignment]
    return tried


@pytest.mark.parametrize("first_step", [0, 3])
@pytest.mark.parametrize("kind", list(ERRORS))
def test_the_micro_batch_is_halved_and_the_loss_stays(tmp_path: Path, kind: str, first_step: int) -> None:
    plain = make_engine(tmp_path, "plain", micro=160, validation=0)
    plain.train()
    short = make_engine(tmp_path, "short", micro=160, validation=0)
    tried = _short_of_memory(short, 50, ERRORS[kind], first_step)
    state = short.train()
    assert state.micro_tokens == 40 and state.step == 8
    assert [event.code for event in short.run.events("micro_batch_halved")] == ["micro_batch_halved"] * 2
    assert losses(short)[:3] == pytest.approx(losses(plain)[:3], rel=1e-6)
    assert losses(short) == pytest.approx(losses(plain), rel=1e-4)
    assert losses(short, "samples_hash") == losses(plain, "samples_hash"), "the global batch is the same"
    assert max(tried[-10:]) <= 40, "it does not grow again"


def test_a_failure_in_the_middle_of_a_step_is_not_counted_twice(tmp_path: Path) -> None:
    plain = make_engine(tmp_path, "plain", train={"steps": 1}, micro=64, validation=0)
    plain.train()
    short = make_engine(tmp_path, "short", train={"steps": 1}, micro=64, validation=0)
    forward, calls = short.learner.forward, []

    def second_fails(batch: Batch) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("out of memory")
        return forward(batch)

    short.learner.forward = second_fails  # type: ignore[method-assign, assignment]
    short.train()
    assert losses(short) == pytest.approx(losses(plain), rel=1e-6)
    left, right = weights(short), weights(plain)
    assert losses(short, "gradient_norm") == pytest.approx(losses(plain, "gradient_norm"), rel=1e-5)
    assert max(float((left[name] - right[name]).abs().max()) for name in left) < 2e-2


def test_preflight_meets_it_before_step_1(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, micro=160, validation=0)
    _short_of_memory(engine, 50, ERRORS["torch"])
    preflight(engine, None)
    assert engine.state.micro_tokens == 40 and engine.state.step == 0


def test_the_smaller_micro_batch_survives_a_restart(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, micro=160, validation=0, train={"save_every": 1})
    _short_of_memory(engine, 50, ERRORS["torch"])
    engine._over = lambda: engine.state.step == 3  # type: ignore[method-assign]
    engine.train()
    engine.run.close()
    again = make_engine(tmp_path, micro=160, validation=0)
    assert again.resume() and again.state.micro_tokens == 40


@pytest.mark.parametrize("kind", list(ERRORS))
def test_when_one_sample_does_not_fit_the_run_says_so(tmp_path: Path, kind: str) -> None:
    engine = make_engine(tmp_path, micro=160, validation=0)
    _short_of_memory(engine, 3, ERRORS[kind])
    with pytest.raises(ResourceError, match="does not fit into memory") as caught:
        engine.train()
    assert caught.value.exit_code == 75 and caught.value.why and "max_length" in caught.value.fix


def test_other_errors_are_not_swallowed(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, validation=0)
    _short_of_memory(engine, 3, lambda: RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        engine.train()
    assert not engine.run.events("micro_batch_halved")
