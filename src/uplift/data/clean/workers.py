"""Work on chunks in several processes: results come back in order, memory stays bounded, a dead worker is an error."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from uplift.core.errors import ResourceError
from uplift.core.interruption import undisturbed

Kept = TypeVar("Kept")
Sent = TypeVar("Sent")
Result = TypeVar("Result")

AHEAD = 2
"""Chunks per worker that are read before their results are asked for."""

CAN_FORK = "fork" in multiprocessing.get_all_start_methods()
"""Where not, one process does all the work: steps with what they hold cannot be sent to another one."""

_function: Callable[[Any], Any] | None = None


def in_order(
    function: Callable[[Sent], Result], tasks: Iterable[tuple[Kept, Sent]], workers: int
) -> Iterator[tuple[Kept, Result]]:
    """``function`` of what is sent of each task, beside what is kept of it, in the order of the tasks.

    With one worker everything happens in this process. Otherwise processes are forked, which takes ``function`` over with all
    it holds. Raises what ``function`` raises, and ResourceError when a process dies.
    """
    if workers <= 1 or not CAN_FORK:
        for kept, sent in tasks:
            yield kept, function(sent)
        return
    pool, processes = _started(function, workers)
    waiting: deque[tuple[Kept, Future[Result]]] = deque()
    done = False
    try:
        for kept, sent in tasks:
            waiting.append((kept, pool.submit(_call, sent)))
            if len(waiting) > AHEAD * workers:
                yield _next(waiting)
        while waiting:
            yield _next(waiting)
        done = True
    except BrokenProcessPool as error:
        raise ResourceError(
            "a worker process died",
            why="the system ended it; most often memory ran out",
            fix="use fewer `--workers`; nothing was written",
        ) from error
    finally:
        if not done:  # nobody waits for what they are at
            for process in processes:
                process.kill()
        pool.shutdown(wait=True, cancel_futures=True)


def _started(function: Callable[[Any], Any], workers: int) -> tuple[ProcessPoolExecutor, list[BaseProcess]]:
    """A pool and its processes. All are forked by the first task, while signals wait: they are no affair of a worker."""
    others = multiprocessing.active_children()
    with undisturbed():
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _begin, (function,))
        pool.submit(os.getpid)
        return pool, [process for process in multiprocessing.active_children() if process not in others]


def _next(waiting: deque[tuple[Kept, Future[Result]]]) -> tuple[Kept, Result]:
    kept, future = waiting.popleft()
    return kept, future.result()


def _begin(function: Callable[[Any], Any]) -> None:
    """Set a worker up: Ctrl-C is the parent's affair, and a worker whose parent is gone goes too."""
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _call(sent: Any) -> Any:
    assert _function is not None
    return _function(sent)
