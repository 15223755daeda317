"""What a forked child does: carry out a recipe the way the command line does, with a fault built in where one is asked for."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.marks import RESUME, SAVE, SAVED, STEP, TRAIN, TRAINED

from uplift.cli.main import main
from uplift.core import storage
from uplift.core.disk import Disk
from uplift.learn.engine import Engine
from uplift.verbs import run as verbs_run


class LethalDisk(Disk):
    """Kills its own process after a call of a given number."""

    def __init__(self, kill_at: int) -> None:
        self.calls, self.kill_at = 0, kill_at

    def _count(self) -> None:
        self.calls += 1
        if self.calls == self.kill_at:
            os.kill(os.getpid(), 9)

    def fsync(self, descriptor: int) -> None:
        """Counted."""
        super().fsync(descriptor)
        self._count()

    def rename(self, source: Path, target: Path) -> None:
        """Counted."""
        super().rename(source, target)
        self._count()

    def unlink(self, path: Path) -> None:
        """Counted."""
        super().unlink(path)
        self._count()


def train(
    recipe: str,
    journal: str,
    marks: str | None = None,
    file_limit: int | None = None,
    kill_at_call: int | None = None,
    step_seconds: float = 0.0,
    environment: dict[str, str] | None = None,
) -> int:
    """``uplift run recipe``; returns its exit code.

    ``marks``: a FIFO for the marks. ``journal``: a file that gets one JSON line when training begins (step, leftovers).
    ``file_limit``: largest file in bytes that may be written. ``kill_at_call``: SIGKILL after so many calls to the disk.
    ``step_seconds``: added to every step. ``environment``: what a launcher tells its processes.
    """
    os.environ.update(environment or {})
    _watch(marks, Path(journal), step_seconds)
    verbs_run.render_html = _no_page  # type: ignore[assignment]
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.RLIM_INFINITY))
    if kill_at_call is not None:
        storage.disk = LethalDisk(kill_at_call)
    return main(["run", recipe, "--json"])


def _no_page(report: object) -> str:
    """Drawing the page starts a JavaScript engine, which costs as much as the whole tiny run."""
    return "<html></html>"


def _watch(marks: str | None, journal: Path, step_seconds: float) -> None:
    """Wrap the engine's methods so that the parent sees where the child is. Only this forked process is changed."""
    descriptor = os.open(marks, os.O_WRONLY) if marks else None

    def mark(byte: int) -> None:
        if descriptor is not None:
            os.write(descriptor, bytes([byte]))

    def around(method: Callable[..., Any], before: int, after: int | None) -> Callable[..., Any]:
        def wrapped(engine: Engine) -> Any:
            if before == TRAIN:
                _write_journal(journal, engine)
            mark(before)
            result = method(engine)
            if after is not None:
                mark(after)
            return result

        return wrapped

    def slowly(engine: Engine, indices: list[int]) -> dict[str, float]:
        mark(STEP)
        time.sleep(step_seconds)
        return step(engine, indices)

    step = Engine._step
    Engine._step = slowly  # type: ignore[method-assign]
    Engine.resume = around(Engine.resume, RESUME, None)  # type: ignore[method-assign]
    Engine.train = around(Engine.train, TRAIN, TRAINED)  # type: ignore[method-assign]
    Engine.commit = around(Engine.commit, SAVE, SAVED)  # type: ignore[method-assign]


def _write_journal(journal: Path, engine: Engine) -> None:
    found = sorted(path.name for path in engine.run.path.rglob("*") if path.name.startswith((".tmp-", ".old-")))
    with open(journal, "a") as stream:
        stream.write(json.dumps({"step": engine.state.step, "leftovers": found}) + "\n")
