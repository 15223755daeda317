"""Signals: the step at hand is finished and saved, the exit code says that the work is not done, and a restart ends it."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import pytest
from tests.faults.harness import (
    Attempt,
    ForkServer,
    Reference,
    chat_recipe,
    elsewhere,
    newest_sound_step,
    outcome,
    read_metrics,
    run_folder,
    undisturbed,
)
from tests.faults.marks import STEP, TRAIN

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}
STEP_SECONDS = 0.02


@pytest.fixture(scope="module")
def reference(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Saved only once in 100 steps, so that what a signal leaves is the signal's own checkpoint."""
    return undisturbed(server, chat_recipe(tmp_path_factory.mktemp("signals"), train={"save_every": 100, "steps": 12}))


@pytest.mark.parametrize("number", list(CODES), ids=lambda number: number.name)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_state_is_saved_and_the_restart_ends_alike(
    server: ForkServer, reference: Reference, tmp_path: Path, number: signal.Signals, seed: int
) -> None:
    rng = random.Random(f"{number}-{seed}")
    recipe = elsewhere(reference.recipe, tmp_path)
    attempt = Attempt(server, recipe, step_seconds=STEP_SECONDS)
    at_step = rng.randint(1, 10)
    assert attempt.await_mark(STEP, at_step)
    attempt.kill(rng.uniform(0, STEP_SECONDS), number)
    assert attempt.end() == CODES[number], attempt.log.read_text()
    logged = max(step for step, _, _ in read_metrics(attempt.folder))
    assert newest_sound_step(attempt.folder) == logged, "the step at hand was finished and saved"
    assert logged - at_step <= 3, "it did not go on for long"
    assert "saved" in attempt.log.read_text() and "Traceback" not in attempt.log.read_text()
    again = Attempt(server, recipe)
    assert again.end() == 0, again.log.read_text()
    assert json.loads(again.journal.read_text().splitlines()[-1])["step"] == logged
    assert outcome(run_folder(recipe)) == reference.outcome


def test_a_second_interrupt_ends_at_once_and_leaves_the_checkpoint(
    server: ForkServer, reference: Reference, tmp_path: Path
) -> None:
    recipe = elsewhere(reference.recipe, tmp_path)
    attempt = Attempt(server, recipe, step_seconds=1.5)
    assert attempt.await_mark(STEP, 1)
    attempt.kill(0.0, signal.SIGINT)
    attempt.kill(0.1, signal.SIGINT)
    begin = time.monotonic()
    assert attempt.end() == 130
    assert time.monotonic() - begin < 1.0
    assert newest_sound_step(attempt.folder) == 0
    again = Attempt(server, recipe)
    assert again.end() == 0, again.log.read_text()
    assert outcome(run_folder(recipe)) == reference.outcome


def test_a_signal_before_the_first_step_does_not_lose_the_run(server: ForkServer, reference: Reference, tmp_path: Path) -> None:
    recipe = elsewhere(reference.recipe, tmp_path)
    attempt = Attempt(server, recipe)
    assert attempt.await_mark(TRAIN)
    attempt.kill(0.0, signal.SIGTERM)
    assert attempt.end() in (143, -signal.SIGTERM)
    again = Attempt(server, recipe)
    assert again.end() == 0, again.log.read_text()
    assert outcome(run_folder(recipe)) == reference.outcome
