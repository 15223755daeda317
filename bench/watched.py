"""Runs a command and says what it and every process that it started cost. Standard library only: this process must stay small.

``python bench/watched.py REPORT STDOUT COMMAND...``: the command's standard output goes to a file, the costs as JSON to REPORT.
Processes whose parent has ended are adopted, so that their time counts too (Linux).
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

EVERY = 0.2
"""Seconds between two looks at the processes."""
PATIENCE = 20.0
"""Seconds that adopted processes get to end."""
ADOPT = 36  # PR_SET_CHILD_SUBREAPER


def descendants() -> Iterator[int]:
    """Every process below this one."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            children.setdefault(int(path.read_text().rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
        except OSError:
            continue
    below = [os.getpid()]
    while below:
        found = children.get(below.pop(), [])
        below += found
        yield from found


def memory(process: int) -> tuple[int, int]:
    """Bytes that a process holds now, and the most that it ever held; zeros when it has ended."""
    try:
        lines = (line.split() for line in Path(f"/proc/{process}/status").read_text().splitlines())
    except OSError:
        return 0, 0
    found = {line[0]: int(line[1]) * 1024 for line in lines if line and line[0] in ("VmRSS:", "VmHWM:")}
    return found.get("VmRSS:", 0), found.get("VmHWM:", 0)


class Watch(threading.Thread):
    """Looks at the processes until ``done``. ``together``: the most that they held at once, shared pages counted each time."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.done = threading.Event()
        self.peaks: dict[int, int] = {}
        self.together = 0

    def run(self) -> None:
        """Look again and again."""
        while not self.done.wait(EVERY):
            found = {process: memory(process) for process in descendants()}
            self.together = max(self.together, sum(now for now, _ in found.values()))
            for process, (_, most) in found.items():
                self.peaks[process] = max(most, self.peaks.get(process, 0))


def reap() -> None:
    """Wait for the adopted processes."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.02)
        except ChildProcessError:
            return


def run(command: list[str], output: Path) -> dict[str, object]:
    """Seconds by the clock and of all processors; bytes of the largest process, of the first one and of the others."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(ADOPT, 1, 0, 0, 0)
    watch = Watch()
    watch.start()
    begin = time.perf_counter()
    with output.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream)
        code = process.wait()
    wall = time.perf_counter() - begin
    reap()
    watch.done.set()
    watch.join()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    others = sorted((peak for each, peak in watch.peaks.items() if each != process.pid), reverse=True)
    return {
        "code": code,
        "wall": wall,
        "cpu": used.ru_utime + used.ru_stime,
        "peak": used.ru_maxrss * 1024,
        "main": watch.peaks.get(process.pid, 0),
        "workers": others[:8],
        "together": watch.together,
    }


def main() -> int:
    """The command's exit code."""
    report = run(sys.argv[3:], Path(sys.argv[2]))
    Path(sys.argv[1]).write_text(json.dumps(report), encoding="utf-8")
    return int(str(report["code"]))


if __name__ == "__main__":
    sys.exit(main())
