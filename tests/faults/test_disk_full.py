"""A disk without room: file and bytes are named, the exit code is 75, the last checkpoint stays whole, a restart goes on."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.faults.harness import (
    Attempt,
    ForkServer,
    Reference,
    chat_recipe,
    elsewhere,
    leftovers,
    newest_sound_step,
    outcome,
    run_folder,
    undisturbed,
)
from tests.faults.marks import SAVED
from tests.learn.engines import losses, make_engine, same, weights

from uplift.core import storage
from uplift.core.disk import Disk
from uplift.core.errors import ResourceError
from uplift.learn.engine import Engine


@pytest.fixture(scope="module")
def reference(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    recipe = chat_recipe(tmp_path_factory.mktemp("full"), train={"steps": 10})
    return undisturbed(server, recipe)


def _killed_after(server: ForkServer, reference: Reference, place: Path, saves: int) -> int:
    """A run killed after so many saves (0: never started); returns the step of its newest checkpoint."""
    recipe = elsewhere(reference.recipe, place)
    if saves:
        attempt = Attempt(server, recipe)
        assert attempt.await_mark(SAVED, saves)
        attempt.kill(0.0)
        attempt.end()
    return newest_sound_step(run_folder(recipe))


@pytest.mark.parametrize(("limit", "saves"), [(30_000, 0), (150_000, 0), (150_000, 3), (300_000, 1)])
def test_a_file_that_may_not_grow(server: ForkServer, reference: Reference, tmp_path: Path, limit: int, saves: int) -> None:
    recipe = elsewhere(reference.recipe, tmp_path)
    before = _killed_after(server, reference, tmp_path, saves)
    attempt = Attempt(server, recipe, file_limit=limit)
    code, log = attempt.end(), attempt.log.read_text()
    assert code == 75, log
    assert re.search(r"cannot (write|use) \S*/\S+", log) and re.search(r"[\d,]+ bytes are free", log), log
    assert "Traceback" not in log and not leftovers(run_folder(recipe))
    assert newest_sound_step(run_folder(recipe)) >= before, "the last good checkpoint is intact"
    again = Attempt(server, recipe)
    assert again.end() == 0, again.log.read_text()
    assert outcome(run_folder(recipe)) == reference.outcome


def test_a_small_file_system_that_is_really_full(server: ForkServer, reference: Reference, tmp_path: Path) -> None:
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("only root may mount a small file system")
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        recipe = elsewhere(reference.recipe, place)
        attempt = Attempt(server, recipe)
        code, log = attempt.end(), attempt.log.read_text()
        assert code == 75 and "bytes are free" in log and "Traceback" not in log, log
        subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
        again = Attempt(server, recipe)
        assert again.end() == 0, again.log.read_text()
        assert outcome(run_folder(recipe)) == reference.outcome
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


class FailingDisk(Disk):
    """Fails with ``error`` from call ``at`` on, as a disk that is full stays full; only deleting still works."""

    def __init__(self, at: int, error: int) -> None:
        self.at, self.error, self.calls = at, error, 0

    def _call(self) -> None:
        self.calls += 1
        if self.at and self.calls >= self.at:
            raise OSError(self.error, os.strerror(self.error))

    def open(self, path: Path, flags: int) -> int:
        if flags & os.O_CREAT:
            self._call()
        return super().open(path, flags)

    def write(self, descriptor: int, content: memoryview) -> int:
        self._call()
        return super().write(descriptor, content)

    def fsync(self, descriptor: int) -> None:
        self._call()
        super().fsync(descriptor)

    def mkdir(self, path: Path) -> None:
        self._call()
        super().mkdir(path)


def _engine(folder: Path, name: str) -> Engine:
    return make_engine(folder, name, train={"steps": 4, "save_every": 1}, validation=0)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_disk_that_fails_at_any_call_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, record_property: Callable[..., None]
) -> None:
    counting = FailingDisk(0, number)
    whole = _engine(tmp_path, "whole")
    monkeypatch.setattr(storage, "disk", counting)
    whole.train()
    calls = range(1, counting.calls + 1, 7)
    record_property("cases", len(calls))
    for at in calls:
        engine = _engine(tmp_path, f"at-{at}")
        monkeypatch.setattr(storage, "disk", FailingDisk(at, number))
        with pytest.raises(ResourceError, match="cannot write") as caught:
            engine.train()
        assert caught.value.exit_code == 75 and "bytes are free" in caught.value.why and caught.value.where
        engine.run.close()
        monkeypatch.setattr(storage, "disk", Disk())
        sound = newest_sound_step(engine.run.path)
        again = _engine(tmp_path, f"at-{at}")
        assert again.resume() == (sound >= 0) and again.state.step == max(sound, 0)
        assert engine.state.step - again.state.step <= 1, "no more than one interval is lost"
        again.train()
        assert losses(again) == losses(whole) and same(weights(again), weights(whole))
        again.run.close()
