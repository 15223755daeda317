"""SIGKILL at random instants: the run continues by itself and ends bit for bit where an undisturbed run ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.faults.harness import (
    RECIPES,
    Attempt,
    ForkServer,
    Reference,
    Verdict,
    elsewhere,
    killed_and_resumed,
    outcome,
    run_folder,
    undisturbed,
)

FAST = {"chat": 8, "classifier": 6, "adapter": 6}
SLOW = {"chat": 100, "classifier": 50, "adapter": 50}


@pytest.fixture(scope="module")
def references(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reference]:
    """What each recipe gives when nobody disturbs it."""
    folders = {name: tmp_path_factory.mktemp(name) for name in RECIPES}
    return {name: undisturbed(server, make(folders[name])) for name, make in RECIPES.items()}


Property = Callable[[str, object], None]


def _campaign(
    server: ForkServer, references: dict[str, Reference], place: Path, counts: dict[str, int], kills: int, first_seed: int = 0
) -> list[Verdict]:
    verdicts = []
    for name, count in counts.items():
        for seed in range(first_seed, first_seed + count):
            verdicts.append(killed_and_resumed(server, references[name], place / f"{name}-{seed}", seed, kills))
            assert not verdicts[-1].problems, f"{name}, seed {seed}: {verdicts[-1].problems}"
    return verdicts


def test_an_undisturbed_run_is_repeatable(
    server: ForkServer, references: dict[str, Reference], tmp_path: Path, record_property: Property
) -> None:
    record_property("cases", 0)  # nothing is killed here
    for name, reference in references.items():
        again = undisturbed(server, elsewhere(reference.recipe, tmp_path / name))
        assert again.outcome == reference.outcome, name


def test_one_sigkill_at_a_random_instant(
    server: ForkServer, references: dict[str, Reference], tmp_path: Path, record_property: Property
) -> None:
    verdicts = _campaign(server, references, tmp_path, FAST, kills=1)
    assert sum(verdict.kills for verdict in verdicts) >= 20
    assert sum(verdict.in_save for verdict in verdicts) >= 5
    record_property("cases", len(verdicts))


def test_three_sigkills_in_one_run(
    server: ForkServer, references: dict[str, Reference], tmp_path: Path, record_property: Property
) -> None:
    verdicts = _campaign(server, references, tmp_path, {"chat": 2, "classifier": 1, "adapter": 1}, kills=3)
    assert sum(verdict.kills for verdict in verdicts) >= 8
    record_property("fault", "F3"), record_property("cases", len(verdicts))


def test_a_kill_at_many_calls_to_the_disk(
    server: ForkServer, references: dict[str, Reference], tmp_path: Path, record_property: Property
) -> None:
    reference, calls = references["chat"], range(1, 110, 13)
    for call in calls:
        recipe = elsewhere(reference.recipe, tmp_path / str(call))
        assert Attempt(server, recipe, kill_at_call=call).end() == -9
        again = Attempt(server, recipe)
        assert again.end() == 0, again.log.read_text()
        assert outcome(run_folder(recipe)) == reference.outcome, f"call {call}"
    record_property("fault", "F2"), record_property("cases", len(calls))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_sigkills(
    server: ForkServer, references: dict[str, Reference], tmp_path: Path, record_property: Property
) -> None:
    verdicts = _campaign(server, references, tmp_path, SLOW, kills=1, first_seed=1000)
    assert sum(verdict.kills for verdict in verdicts) >= 200
    record_property("cases", len(verdicts))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_runs_with_three_sigkills_each(
    server: ForkServer, references: dict[str, Reference], tmp_path: Path, record_property: Property
) -> None:
    verdicts = _campaign(server, references, tmp_path, {"chat": 20, "classifier": 15, "adapter": 15}, kills=3, first_seed=2000)
    record_property("fault", "F3"), record_property("cases", len(verdicts))
