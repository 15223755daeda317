"""Damaged checkpoints: found, named, passed over for an older good one, and the run still ends where it should, bit for bit."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tests.learn.engines import losses, make_engine, same, weights

from uplift.core.storage import DamagedFiles, verify_directory
from uplift.learn.engine import Engine
from uplift.learn.preflight import preflight

STEPS = 6
NEWEST, OLDER = "step-00000004", "step-00000002"
FILES = ("weights.safetensors", "memory.safetensors", "state.json", "manifest.json")


@dataclass(frozen=True)
class Interrupted:
    """A run folder (``cut-h``) as a crash after step 4 left it, saved at 2 and 4, and what the undisturbed run gave."""

    folder: Path
    losses: list[float]
    weights: dict[str, torch.Tensor]


def _engine(folder: Path, name: str) -> Engine:
    train = {"steps": STEPS, "save_every": 2, "keep": 2}
    return make_engine(folder, name, techniques=[{"use": "neftune"}, {"use": "ema"}], train=train, validation=0)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    folder = tmp_path_factory.mktemp("damage")
    whole, cut = _engine(folder, "whole"), _engine(folder, "cut")
    whole.train()
    cut._over = lambda: cut.state.step == 4  # type: ignore[method-assign]
    cut.train()
    found = Interrupted(folder, losses(whole), weights(whole))
    assert sorted(path.name for path in cut.run.checkpoints.iterdir()) == [OLDER, NEWEST]
    whole.run.close(), cut.run.close()
    return found


def _restart(interrupted: Interrupted, damage: Callable[[Path], object]) -> Engine:
    """A copy of the interrupted run, its checkpoints damaged, started again; not trained yet."""
    target = interrupted.folder / "again-h"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(interrupted.folder / "cut-h", target)
    damage(target / "checkpoints")
    engine = _engine(interrupted.folder, "again")
    if not engine.resume():
        preflight(engine, None)
    return engine


def _ends_as_undisturbed(engine: Engine, interrupted: Interrupted) -> None:
    engine.train()
    found = losses(engine)
    engine.run.close()
    assert found == interrupted.losses
    assert same(weights(engine), interrupted.weights)


def _flip(file: Path, rng: random.Random) -> str:
    content = bytearray(file.read_bytes())
    bit = rng.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(bytes(content))
    return f"bit {bit} of {file.name}"


def _check_flip(interrupted: Interrupted, seed: int) -> None:
    rng, name = random.Random(seed), FILES[seed % len(FILES)]
    engine = _restart(interrupted, lambda checkpoints: _flip(checkpoints / NEWEST / name, rng))
    told = [event.text for event in engine.run.events("damaged_checkpoint")]
    assert len(told) == 1 and NEWEST in told[0] and name in told[0], f"seed {seed}: {told}"
    assert engine.state.step == 2, f"seed {seed}: continued from {engine.state.step}"
    _ends_as_undisturbed(engine, interrupted)


def test_every_bit_flip_is_named_and_passed_over(interrupted: Interrupted, record_property: Callable[..., None]) -> None:
    for seed in range(32):
        _check_flip(interrupted, seed)
    record_property("cases", 32)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_bit_flips(interrupted: Interrupted, record_property: Callable[..., None]) -> None:
    for seed in range(1000, 1200):
        _check_flip(interrupted, seed)
    record_property("cases", 200)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["missing", "truncated", "empty", "swapped"])
def test_a_missing_or_cut_part_is_named_and_passed_over(interrupted: Interrupted, name: str, how: str) -> None:
    def damage(checkpoints: Path) -> None:
        file = checkpoints / NEWEST / name
        if how == "missing":
            file.unlink()
        elif how == "swapped":
            shutil.copy(checkpoints / OLDER / name, file)
        else:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2 if how == "truncated" else 0])

    engine = _restart(interrupted, damage)
    told = [event.text for event in engine.run.events("damaged_checkpoint")]
    # A whole manifest of another step blames the files; the older manifest describes other contents.
    blamed = name if (how, name) != ("swapped", "manifest.json") else "weights.safetensors"
    assert len(told) == 1 and blamed in told[0] and engine.state.step == 2
    _ends_as_undisturbed(engine, interrupted)


def test_a_foreign_file_in_a_checkpoint_is_named(interrupted: Interrupted) -> None:
    engine = _restart(interrupted, lambda checkpoints: (checkpoints / NEWEST / "notes.txt").write_text("hello"))
    assert "notes.txt" in engine.run.events("damaged_checkpoint")[0].text
    _ends_as_undisturbed(engine, interrupted)


def test_the_damaged_checkpoint_is_kept_aside_for_a_look(interrupted: Interrupted) -> None:
    engine = _restart(interrupted, lambda checkpoints: (checkpoints / NEWEST / "manifest.json").unlink())
    assert (engine.run.checkpoints / f"damaged-{NEWEST}" / "weights.safetensors").is_file()
    _ends_as_undisturbed(engine, interrupted)
    with pytest.raises(DamagedFiles):
        verify_directory(engine.run.checkpoints / f"damaged-{NEWEST}")
    assert verify_directory(engine.run.checkpoints / NEWEST)


def test_when_all_are_damaged_the_run_starts_anew_and_says_so(interrupted: Interrupted) -> None:
    def damage(checkpoints: Path) -> None:
        for step in (NEWEST, OLDER):
            _flip(checkpoints / step / "weights.safetensors", random.Random(step))

    engine = _restart(interrupted, damage)
    assert engine.state.step == 0 and len(engine.run.events("damaged_checkpoint")) == 2
    _ends_as_undisturbed(engine, interrupted)


def test_a_damaged_best_step_is_named_at_the_end(tmp_path: Path) -> None:
    train = {"steps": 4, "save_every": 1}
    engine = make_engine(tmp_path, train=train)
    engine._over = lambda: engine.state.step == 2 and not engine._keep_best()  # type: ignore[method-assign, func-returns-value]
    engine.train()
    engine.run.close()
    _flip(tmp_path / "run-h" / "best" / "weights.safetensors", random.Random(1))
    again = make_engine(tmp_path, train=train)
    again.resume()
    again.state.best_step = 2
    with pytest.raises(DamagedFiles, match="weights.safetensors"):
        again.train()
