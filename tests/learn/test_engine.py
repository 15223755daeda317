"""The loop: what a step does to the weights, how runs end, what they remember, what they refuse."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from pydantic import PrivateAttr
from tests.learn.engines import distance, losses, make_engine, same, token_samples, weights

from uplift.core.errors import ResourceError, Stopped
from uplift.core.storage import verify_directory
from uplift.core.technique import Technique
from uplift.core.values import Effect, Progress, Signal
from uplift.learn.preflight import preflight


class StopAt(Technique):
    """Asks to stop at a step and to keep the best at another."""

    use: Literal["stop_at"] = "stop_at"
    step: int
    best: int = -1
    _seen: list[int] = PrivateAttr(default_factory=list)

    def observe(self, progress: Progress, metrics: Mapping[str, float]) -> list[Signal]:
        self._seen.append(progress.step)
        found = [Signal("keep_best", "best so far")] if progress.step == self.best else []
        return [*found, Signal("stop", f"asked for at step {self.step}")] if progress.step == self.step else found

    def effect(self) -> Effect:
        return Effect(self.use, "stopped", 1.0, True)


def test_training_lowers_the_loss_and_logs_every_step(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, train={"steps": 20})
    state = engine.train()
    assert state.step == 20 and len(losses(engine)) == 20
    assert losses(engine)[-1] < losses(engine)[0] - 0.3
    for name in ("lr", "gradient_norm", "tokens", "batch_mean_length", "samples_hash", "tokens_per_second", "loss_task"):
        assert len(losses(engine, name)) == 20, name
    assert losses(engine, "tokens")[-1] == state.tokens
    assert [step for step, _, _ in engine.run.metrics("validation_loss")] == [3, 6, 9, 12, 15, 18]


def test_an_epoch_visits_every_sample_once(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, train={"steps": None, "epochs": 1.0})
    seen: list[int] = []
    step = engine._step
    engine._step = lambda indices: seen.extend(indices) or step(indices)  # type: ignore[method-assign, func-returns-value]
    state = engine.train()
    assert sorted(seen) == list(range(40)) and state.samples == 40
    assert engine.progress().fraction == 1.0


def test_the_logged_loss_is_the_weighted_mean_over_the_whole_step(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, train={"steps": 1}, micro=20)
    indices = engine.feed.steps(0, engine.planned)[0]
    batches = engine.feed.micro_batches(indices, 10**6, engine.parallel, engine.progress())
    with torch.no_grad():
        term = engine.learner(batches[0])["task"]
    engine.train()
    assert losses(engine)[0] == pytest.approx(float(term.sum) / term.count, rel=1e-6)


@pytest.mark.parametrize("head", ["language", "class"])
def test_accumulation_changes_nothing(tmp_path: Path, head: str) -> None:
    gentle = {"optimizer": {"eps": 1e-3}}  # with a tiny eps Adam turns the last digits of a tiny gradient into a full step
    whole = make_engine(tmp_path, "whole", head=head, micro=10_000, train=gentle)
    parts = make_engine(tmp_path, "parts", head=head, micro=20, train=gentle)
    whole.train(), parts.train()
    assert losses(whole, "samples_hash") == losses(parts, "samples_hash")
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)
    assert distance(weights(whole), weights(parts)) < 1e-5


def test_resume_in_the_middle_is_bit_identical(tmp_path: Path) -> None:
    techniques = [{"use": "neftune"}, {"use": "ema"}]
    whole = make_engine(tmp_path, "whole", techniques=techniques, config={"attention_dropout": 0.1})
    whole.train()
    first = make_engine(tmp_path, "cut", techniques=techniques)
    first._over = lambda: first.state.step == 5  # type: ignore[method-assign]
    first._save_due = lambda: first.state.step in (2, 4)  # type: ignore[method-assign]
    first.train()
    first.run.close()
    (tmp_path / "cut-h" / "checkpoints" / "step-00000005").rename(tmp_path / "gone")
    second = make_engine(tmp_path, "cut", techniques=techniques)
    assert second.resume() and second.state.step == 4
    assert len(losses(second)) == 4, "metrics of steps that are done again are dropped"
    second.train()
    assert losses(second) == losses(whole) and same(weights(second), weights(whole))


def test_a_stop_signal_ends_the_run_and_a_restart_does_not_go_on(tmp_path: Path) -> None:
    stopping = make_engine(tmp_path, techniques=[StopAt(step=4)], train={"save_every": 1})
    state = stopping.train()
    assert state.step == 4 and "asked for" in state.stopped
    stopping.run.close()
    again = make_engine(tmp_path, techniques=[StopAt(step=4)], train={"save_every": 1})
    assert again.resume() and again.train().step == 4
    assert same(weights(again), weights(stopping))


def test_the_best_weights_come_back_at_the_end(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, techniques=[StopAt(step=6, best=3)], train={"save_every": 1})
    at: dict[int, dict[str, torch.Tensor]] = {}
    observe = engine._observe
    engine._observe = lambda metrics: (at.update({engine.state.step: weights(engine)}), observe(metrics))[1]  # type: ignore
    engine.train()
    assert same(weights(engine), at[3]) and not same(weights(engine), at[6])
    assert [event.code for event in engine.run.events("best_restored")] == ["best_restored"]
    engine.run.close()
    again = make_engine(tmp_path, techniques=[StopAt(step=6, best=3)], train={"save_every": 1})
    assert again.resume()
    again.train()
    assert same(weights(again), at[3]), "also when the process ended after training"


def test_a_time_budget_fits_the_schedule_and_survives_a_restart(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, train={"steps": 10**6, "budget": {"seconds": 2.0}, "save_every": 5})
    preflight(engine, 2.0)
    assert engine.horizon.tokens == engine.state.token_limit and 0 < (engine.horizon.tokens or 0) < 10**6
    limit = engine.horizon.tokens
    engine.run.close()
    again = make_engine(tmp_path, train={"steps": 10**6, "budget": {"seconds": 2.0}, "save_every": 5})
    assert again.resume() and again.horizon.tokens == limit
    state = again.train()
    # The last rate of the schedule is near 0, unless a busy machine cut the run, which is then said.
    assert losses(again, "lr")[-1] < 0.1 * max(losses(again, "lr")) or "budget" in state.stopped


def test_a_run_over_its_time_is_cut_and_says_so(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, train={"steps": 10**6, "budget": {"seconds": 0.05}})
    state = engine.train()
    assert "budget" in state.stopped and engine.run.events("budget_cut")
    assert verify_directory(engine.run.checkpoints / f"step-{state.step:08d}").meta["step"] == state.step


def test_the_rate_follows_the_schedule_and_ends_low(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, train={"steps": 20, "schedule": {"use": "linear", "warmup": 0.2}})
    engine.train()
    rates = losses(engine, "lr")
    assert max(rates) <= engine.lr and rates[0] < 0.2 * engine.lr and rates[-1] < 0.1 * engine.lr
    assert rates.index(max(rates)) in (3, 4, 5)


def test_clipping_bounds_the_update_but_logs_the_true_norm(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, train={"clip": 1e-3, "steps": 2})
    norms: list[float] = []
    step = engine.optimizer.step

    def stepped(*arguments: Any) -> Any:
        gradients = [p.grad.norm() for p in engine.parameters.values() if p.grad is not None]
        norms.append(float(torch.stack(gradients).norm()))
        return step(*arguments)

    engine.optimizer.step = stepped  # type: ignore[method-assign]
    engine.train()
    assert all(norm == pytest.approx(1e-3, rel=1e-3) for norm in norms)
    assert all(value > 0.01 for value in losses(engine, "gradient_norm"))


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, train={"keep": 2, "save_every": 1})
    engine.train()
    assert sorted(path.name for path in engine.run.checkpoints.iterdir()) == ["step-00000007", "step-00000008"]


def test_preflight_commits_a_verified_step_0_and_changes_nothing(tmp_path: Path) -> None:
    engine = make_engine(tmp_path)
    before = weights(engine)
    assert preflight(engine, None) > 0
    assert verify_directory(engine.run.checkpoints / "step-00000000").meta["step"] == 0
    assert same(before, weights(engine)) and all(p.grad is None for p in engine.parameters.values())
    assert not engine.optimizer.state and engine.state.step == 0


def test_preflight_refuses_a_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uplift.core.disk.free_bytes", lambda path: 1000)
    engine = make_engine(tmp_path)
    with pytest.raises(ResourceError, match="not enough disk space") as caught:
        preflight(engine, None)
    assert "1,000 bytes are free" in caught.value.why


def test_a_received_signal_saves_and_raises(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, train={"save_every": 100})
    observe = engine._observe

    def interrupted(metrics: dict[str, float]) -> None:
        observe(metrics)
        if engine.state.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    engine._observe = interrupted  # type: ignore[method-assign]
    with pytest.raises(Stopped) as caught:
        engine.train()
    assert caught.value.exit_code == 143 and "step 3" in str(caught.value)
    assert verify_directory(engine.run.checkpoints / "step-00000003").meta["step"] == 3
    assert signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, signal.default_int_handler), "handlers are put back"


def test_long_samples_are_steps_of_their_own(tmp_path: Path) -> None:
    samples = token_samples(6, shortest=60, longest=90)
    engine = make_engine(tmp_path, samples=samples, train={"batch_tokens": 50, "steps": None, "epochs": 1.0})
    state = engine.train()
    assert state.step == 6 and math.isfinite(losses(engine)[-1])


@pytest.mark.parametrize("epochs", [0.5, 3.0])
def test_a_restart_with_cached_frozen_layers_is_bit_identical(tmp_path: Path, epochs: float) -> None:
    frozen = {"use": "freeze", "below": 2}
    train = {"steps": None, "epochs": epochs, "save_every": 2}
    whole = make_engine(tmp_path, "whole", techniques=[frozen], train=train, cached_layers=1)
    preflight(whole, None)
    assert (whole.learner.prefix is None) == (epochs < 1), "below one epoch there is nothing to keep"
    whole.train()
    cut = make_engine(tmp_path, "cut", techniques=[frozen], train=train, cached_layers=1)
    preflight(cut, None)
    cut._over = lambda: cut.state.step >= 2  # type: ignore[method-assign]
    cut.train()
    cut.run.close()
    again = make_engine(tmp_path, "cut", techniques=[frozen], train=train, cached_layers=1)
    assert again.resume() and (again.learner.prefix is None) == (epochs < 1)
    again.train()
    assert losses(again) == losses(whole) and same(weights(again), weights(whole))
    if again.learner.prefix is not None:
        assert again.learner.prefix.misses == 0 or again.validation, "training samples come from the cache"
