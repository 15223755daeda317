"""Signals that end a command: they unwind it like Ctrl-C, so that nothing half-written stays, and they wait where they must."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupted(KeyboardInterrupt):
    """A signal ended the command. ``number``: which one; the text is for people."""

    def __init__(self, number: int, told: str) -> None:
        super().__init__(told)
        self.number = number


@contextmanager
def stoppable(told: str) -> Iterator[None]:
    """A signal that would end the process raises Interrupted with ``told``. Outside the main thread nothing changes."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number, f"stopped by {signal.Signals(number).name}: {told}")

    with _handled(stop):
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """Signals that would end the process wait until the end of this: tidying up must not be cut short by a second Ctrl-C."""
    waiting: list[int] = []
    try:
        with _handled(lambda number, frame: waiting.append(number)):
            yield
    finally:
        for number in waiting[:1]:
            signal.raise_signal(number)


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Another handler for the signals that are not ignored; only the main thread can set one."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        known = {number: signal.getsignal(number) for number in ENDING}
        before = {number: own for number, own in known.items() if own not in (None, signal.SIG_IGN)}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, own in before.items():
            signal.signal(number, own)
