"""Prechelt's criteria, noise, smoothing and the decay signal, replayed on curves whose minimum is known."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from uplift.core.values import Progress
from uplift.techniques.stop.early_stopping import (
    EarlyStopping,
    generalization_loss,
    progress_of_strip,
    rising_strips,
    smoothed,
)


def replay(
    technique: EarlyStopping, values: list[float], training: list[list[float]] | None = None, error: float = 0.0
) -> int | None:
    """Index of the evaluation at which the technique acts, None = never. ``training``: losses of the strip before each."""
    for index, value in enumerate(values):
        strip = training[index] if training else [1.0]
        for loss in strip[:-1]:
            assert technique.observe(Progress(step=10 * index), {"loss": loss}) == []
        metrics = {"validation_loss": value, "loss": strip[-1], "validation_loss_paired_se": error, "validation_loss_se": 9.0}
        if any(s.kind in ("stop", "decay") for s in technique.observe(Progress(step=10 * index), metrics)):
            return index
    return None


def test_the_formulas() -> None:
    assert generalization_loss([2.0, 1.0, 1.1]) == pytest.approx(10.0)
    assert progress_of_strip(1.05, 1.0) == pytest.approx(50.0)
    assert [rising_strips(v, 1.0) for v in ([1.0], [1.0, 2.0], [3.0, 1.0, 2.0, 3.0], [1.0, 2.0, 2.0])] == [0, 1, 2, 0]
    assert rising_strips([3.0, 2.0, 1.0], -1.0) == 2
    assert smoothed([1.0, 0.0, 0.0], 0.5) == [1.0, 0.5, 0.25]


def test_gl_stops_when_the_loss_exceeds_the_lowest_by_the_threshold() -> None:
    values = [2.0, 1.5, 1.0, 1.01, 1.019, 1.021, 1.5]
    assert replay(EarlyStopping(criterion="gl", threshold=2.0), values) == 5
    assert replay(EarlyStopping(criterion="gl", threshold=60.0), values) is None


def test_pq_waits_while_training_still_makes_progress() -> None:
    values = [1.0, 1.03, 1.03, 1.03]  # GL 3
    falling, stalled = [1.2, 1.1, 1.0], [1.001, 1.0, 1.001]  # P 100, P about 0.67
    technique = EarlyStopping(criterion="pq", threshold=1.0)
    assert replay(technique, values, [falling, falling, falling, stalled]) == 3
    assert replay(EarlyStopping(criterion="pq", threshold=1.0), values, [falling] * 4) is None


def test_up_counts_evaluations_that_are_each_worse() -> None:
    values = [1.0, 1.1, 1.05, 1.06, 1.07, 1.08]
    assert replay(EarlyStopping(criterion="up", patience=3), values) == 5
    assert replay(EarlyStopping(criterion="up", patience=4), values) is None


def test_the_error_of_the_paired_difference_counts_before_that_of_the_mean() -> None:
    values = [1.0, 0.9, 0.8, 0.7]
    assert replay(EarlyStopping(patience=2, noise=1.0), values, error=0.01) is None
    assert replay(EarlyStopping(patience=2, noise=1.0), values, error=0.5) == 2


def test_ratios_are_refused_for_scores_that_rise() -> None:
    with pytest.raises(ValidationError, match="ratio of losses"):
        EarlyStopping(criterion="gl", metric="validation_accuracy")


def test_stop_and_decay_declare_what_they_need_of_the_schedule() -> None:
    assert "wsd_schedule" in EarlyStopping(action="decay").declare().needs
    assert "wsd_schedule" in EarlyStopping().declare().conflicts
    technique = EarlyStopping(action="decay", patience=1)
    assert replay(technique, [1.0, 1.0]) == 1 and "began the decay" in technique.effect().detail


@pytest.mark.parametrize("options", [{"criterion": "gl"}, {"criterion": "pq"}, {"criterion": "up"}, {"smoothing": 0.5}])
def test_decisions_survive_a_restart(options: dict) -> None:
    rng = np.random.default_rng(0)
    values = [float(v) for v in 1.0 + 0.05 * rng.standard_normal(12)]
    strips = [[float(v) for v in 1.0 + 0.1 * rng.random(3)] for _ in values]
    whole, first, second = (EarlyStopping(**options) for _ in range(3))

    def feed(technique: EarlyStopping, which: range) -> None:
        for index in which:
            for loss in strips[index][:-1]:
                technique.observe(Progress(step=10 * index), {"loss": loss})
            metrics = {"validation_loss": values[index], "loss": strips[index][-1]}
            technique.observe(Progress(step=10 * index), metrics)

    feed(whole, range(12))
    feed(first, range(5))
    first.observe(Progress(step=45), {"loss": strips[5][0]})  # in the middle of a strip
    second.load_state(first.state())
    second.observe(Progress(step=46), {"loss": strips[5][1]})
    second.observe(Progress(step=50), {"validation_loss": values[5], "loss": strips[5][2]})
    feed(second, range(6, 12))
    assert second.state() == whole.state() and second.effect() == whole.effect()


def curves(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """True validation loss over 40 evaluations with its minimum at a third or so, and what is measured of it."""
    rng, made = np.random.default_rng(1), []
    steps = np.arange(40.0)
    for _ in range(count):
        low = rng.uniform(8, 16)
        true = 0.5 + np.exp(-steps / (low / 3)) + 0.004 * np.maximum(0.0, steps - low)
        made.append((true, true + 0.02 * rng.standard_normal(len(steps))))
    return made


def test_on_a_thousand_noisy_curves_noise_awareness_pays() -> None:
    early, regrets, used = 0, [], []
    for true, seen in curves(1000):
        naive = replay(EarlyStopping(patience=1), list(map(float, seen)))
        assert naive is not None
        early += true[naive] - true.min() > 0.02 and naive < int(true.argmin())
        technique = EarlyStopping(patience=4, smoothing=0.5)
        end = replay(technique, list(map(float, seen)), error=0.02)
        regrets.append(true[technique._best] - true.min())
        used.append((len(seen) if end is None else end + 1) / len(seen))
    assert early >= 500, f"patience 1 stopped too early in {early} of 1000"
    assert np.median(regrets) <= 0.02
    assert np.median(used) <= 0.6
