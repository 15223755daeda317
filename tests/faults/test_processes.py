"""Several processes on one recipe: one is killed, all start again, and the run ends bit for bit where it should."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from tests.faults.harness import (
    ROOT,
    ForkServer,
    Outcome,
    chat_recipe,
    classifier_recipe,
    elsewhere,
    logs,
    newest_sound_step,
    outcome,
    read_events,
    read_metrics,
    run_folder,
    start_together,
)

from uplift.core.recipe import Recipe

WORLD = 2


def _finished(server: ForkServer, recipe: Recipe, world: int = WORLD) -> Outcome:
    codes = [server.wait(pid) for pid in start_together(server, recipe, world)]
    assert codes == [0] * world, logs(recipe)
    return outcome(run_folder(recipe))


@pytest.fixture(scope="module")
def reference(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Outcome, float]:
    """Saved at every second step, the last one included."""
    recipe = chat_recipe(tmp_path_factory.mktemp("ranks"), train={"steps": 12, "save_every": 2})
    begin = time.monotonic()
    return recipe, _finished(server, recipe), time.monotonic() - begin


def _one_killed(server: ForkServer, reference: tuple[Recipe, Outcome, float], place: Path, seed: int) -> bool:
    """Kill one process at a random instant, then start all again; False when the run was faster than the blow."""
    rng, (recipe, wanted, seconds) = random.Random(seed), reference
    recipe = elsewhere(recipe, place)
    pids = start_together(server, recipe, WORLD)
    time.sleep(rng.uniform(0.2, 0.9) * seconds)
    os.kill(pids[rng.randrange(WORLD)], signal.SIGKILL)
    time.sleep(0.3)
    for pid in pids:  # the launcher ends the others, which may wait for the dead one
        os.kill(pid, signal.SIGKILL)
    codes = [server.wait(pid) for pid in pids]
    assert _finished(server, recipe) == wanted, f"seed {seed}: {logs(recipe)}"
    return -signal.SIGKILL in codes


def test_a_repeated_run_is_bit_identical(server: ForkServer, reference: tuple[Recipe, Outcome, float], tmp_path: Path) -> None:
    assert _finished(server, elsewhere(reference[0], tmp_path)) == reference[1]


def test_one_of_two_processes_is_killed(server: ForkServer, reference: tuple[Recipe, Outcome, float], tmp_path: Path) -> None:
    for seed in range(3):
        _one_killed(server, reference, tmp_path / str(seed), seed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_one_of_two_processes_is_killed_many_times(
    server: ForkServer, reference: tuple[Recipe, Outcome, float], tmp_path: Path, record_property: Callable[..., None]
) -> None:
    killed, seeds = 0, count(100)
    while killed < 50:  # a machine that grew faster since the reference was timed outruns some of the blows
        seed = next(seeds)
        killed += _one_killed(server, reference, tmp_path / str(seed), seed)
    record_property("cases", killed)


def _signalled(server: ForkServer, reference: Recipe, tmp_path: Path, rank: int) -> Recipe:
    """A copy of the run in which one of the processes got SIGTERM after two steps, and both ended with 143."""
    recipe = elsewhere(reference, tmp_path)
    pids = start_together(server, recipe, WORLD, step_seconds=0.2)
    while newest_sound_step(run_folder(recipe)) < 2:
        time.sleep(0.05)
    os.kill(pids[rank], signal.SIGTERM)
    assert [server.wait(pid) for pid in pids] == [143, 143], logs(recipe)
    return recipe


def test_a_signal_to_one_process_saves_and_ends_all(
    server: ForkServer, reference: tuple[Recipe, Outcome, float], tmp_path: Path
) -> None:
    recipe = _signalled(server, reference[0], tmp_path, rank=1)
    assert _finished(server, recipe) == reference[1]


def test_another_number_of_processes_continues_and_says_so(
    server: ForkServer, reference: tuple[Recipe, Outcome, float], tmp_path: Path
) -> None:
    recipe = _signalled(server, reference[0], tmp_path, rank=0)
    found = _finished(server, recipe, world=1)
    assert any("processes: 2 -> 1" in text for text in read_events(run_folder(recipe), "identity_changed"))
    assert [row for row in found.metrics if row[1] == "samples_hash"] == [
        row for row in reference[1].metrics if row[1] == "samples_hash"
    ], "the order of the data does not depend on the number of processes"


def test_processes_agree_on_a_time_budget(server: ForkServer, tmp_path: Path) -> None:
    train = {"steps": 1_000_000, "budget": {"seconds": 1.0}, "save_every": 1000, "evaluate_every": None}
    recipe = elsewhere(chat_recipe(tmp_path / "base", train=train), tmp_path / "runs")
    steps = {step for step, _, _ in _finished(server, recipe).metrics}
    assert 1 < len(steps) < 1_000_000, "with a schedule fitted to its own clock each would end at another step"


def test_processes_agree_on_the_best_step(server: ForkServer, tmp_path: Path) -> None:
    techniques = [{"use": "early_stopping", "patience": 1}]
    train = {"steps": 200, "lr": 0.5, "save_every": 3}
    recipe = elsewhere(classifier_recipe(tmp_path / "base", techniques=techniques, train=train), tmp_path / "runs")
    found = _finished(server, recipe)
    assert read_events(run_folder(recipe), "best_restored") and max(step for step, _, _ in found.metrics) < 200


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sigterm_to_the_launcher_saves_and_does_not_look_finished(tmp_path: Path) -> None:
    recipe = elsewhere(chat_recipe(tmp_path / "base", train={"steps": 100_000, "save_every": 1000}), tmp_path / "runs")
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(recipe.model_dump(mode="json")))
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "uplift"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    with open(tmp_path / "log.txt", "w") as log:
        launcher = subprocess.Popen(
            [sys.executable, *words, "run", str(file)], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
    deadline = time.monotonic() + 120
    while len(read_metrics(run_folder(recipe))) < 100 and time.monotonic() < deadline:
        time.sleep(0.5)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(timeout=120) != 0, (tmp_path / "log.txt").read_text()[-3000:]
    logged = max(step for step, _, _ in read_metrics(run_folder(recipe)))
    assert newest_sound_step(run_folder(recipe)) == logged > 0, (tmp_path / "log.txt").read_text()[-3000:]
