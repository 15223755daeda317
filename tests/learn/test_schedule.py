"""The learning rate is a pure function of the share of training done."""

from __future__ import annotations

import pytest

from uplift.core.recipe import Schedule
from uplift.learn.schedule import Horizon, lr_factor


@pytest.mark.parametrize("use", ["linear", "cosine", "wsd", "constant"])
def test_warmup_rises_linearly_to_the_peak(use: str) -> None:
    schedule = Schedule(use=use, warmup=0.1)
    assert lr_factor(schedule, 0.0) == 0.0
    assert lr_factor(schedule, 0.05) == pytest.approx(0.5)
    assert lr_factor(schedule, 0.1) == pytest.approx(1.0)


@pytest.mark.parametrize("use", ["linear", "cosine", "wsd"])
def test_decay_ends_at_the_floor_and_never_rises(use: str) -> None:
    schedule = Schedule(use=use, warmup=0.05, floor=0.1)
    values = [lr_factor(schedule, 0.05 + 0.95 * i / 200) for i in range(201)]
    assert values[-1] == pytest.approx(0.1)
    assert all(later <= earlier + 1e-12 for earlier, later in zip(values, values[1:], strict=False))


def test_wsd_is_stable_until_its_decay() -> None:
    schedule = Schedule(use="wsd", warmup=0.1, decay=0.2)
    assert lr_factor(schedule, 0.5) == lr_factor(schedule, 0.8) == 1.0
    assert lr_factor(schedule, 0.9) == pytest.approx(0.5)


def test_fractions_outside_the_run_are_clamped() -> None:
    assert lr_factor(Schedule(), 7.0) == lr_factor(Schedule(), 1.0) == 0.0


def test_the_first_limit_met_ends_the_run() -> None:
    horizon = Horizon(samples=100, steps=10, tokens=None)
    assert horizon.fraction(50, 1, 10**9) == 0.5
    assert horizon.fraction(50, 9, 0) == pytest.approx(0.9)
    assert Horizon(steps=0).fraction(0, 0, 0) == 1.0
