"""One worker process per system; the systems take turns, one optimizer step at a time, on one machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch

from uplift.core.errors import ResourceError

START_SECONDS = 600.0
"""The longest a worker may take to load its libraries and model, or to do one step."""


@dataclass(frozen=True)
class Step:
    """One optimizer step as its worker saw it: real (non-padding) tokens, loss, seconds of clock and of CPU, peak bytes."""

    tokens: int
    loss: float
    wall: float
    cpu: float
    peak: int


class Gate:
    """What a system holds on to inside its worker: waits for each command to step, and reports what the step took."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self._begun = pipe, (0.0, 0.0)

    def begin(self) -> int | None:
        """Wait for the next step's number; None: no more steps. The clock starts when this returns."""
        number: int | None = self.pipe.recv()
        self._begun = (time.perf_counter(), time.process_time())
        return number

    def end(self, tokens: int, loss: float) -> None:
        """Stop the clock, once the accelerator has done its work, and report."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        wall, cpu = time.perf_counter() - self._begun[0], time.process_time() - self._begun[1]
        self.pipe.send(Step(tokens, loss, wall, cpu, peak_memory()))


def peak_memory() -> int:
    """The most memory (bytes) this process has held at once: on the GPU if it uses one, else main memory."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_reserved()
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            lines = [line for line in status if line.startswith("VmHWM")]
        return int(lines[0].split()[1]) * 1024
    except (OSError, IndexError):
        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


class Worker:
    """A system in its own process, as the orchestrator sees it. ``train(gate)`` runs there until the gate says None."""

    def __init__(self, name: str, train: Callable[[Gate], None], verbose: bool = False) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_work, args=(other, train, verbose), daemon=True)
        self.process.start()
        other.close()
        self.steps: list[Step] = []

    def step(self, number: int) -> Step:
        """Let the system do one step and wait for it. Raises ResourceError when the worker failed."""
        self.pipe.send(number)
        result = self._receive()
        self.steps.append(result)
        return result

    def _receive(self) -> Step:
        if not self.pipe.poll(START_SECONDS):
            raise ResourceError(f"`{self.name}` did not finish a step in {START_SECONDS:.0f} s")
        try:
            result = self.pipe.recv()
        except EOFError:
            raise ResourceError(f"`{self.name}` ended early", why="its process died, perhaps for lack of memory") from None
        if isinstance(result, str):
            raise ResourceError(f"`{self.name}` failed", why=result)
        return result  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the worker."""
        if self.process.is_alive():
            with contextlib.suppress(OSError):
                self.pipe.send(None)
            self.process.join(10)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    # -- what the counted steps say --------------------------------------------------------------------------------
    def speed(self, warmup: int) -> float:
        """Median tokens per second of clock."""
        return statistics.median(step.tokens / step.wall for step in self.steps[warmup:])

    @property
    def peak(self) -> int:
        """Peak memory in bytes."""
        return max(step.peak for step in self.steps)


def _work(pipe: Connection, train: Callable[[Gate], None], verbose: bool) -> None:
    if not verbose:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
    try:
        train(Gate(pipe))
    except (EOFError, KeyboardInterrupt):
        pass
    except BaseException:  # the orchestrator, not this silent process, must say what went wrong
        pipe.send(traceback.format_exc(limit=-8))
