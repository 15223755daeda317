"""One writer per directory: a lock file that names its owner and is taken over when the owner is dead."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from uplift.core.errors import Place, ResourceError

try:
    import fcntl
except ImportError:  # Windows: the short window between looking and taking stays open there
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"


def process_started(pid: int) -> str | None:
    """A text that names when process ``pid`` started (so that a reused number is told apart), or None if it is not alive.

    Counted in clock ticks since boot where the system tells them: a jump of the wall clock must not free a live lock.
    """
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return None
        return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return "alive"


class DirectoryInUse(ResourceError):
    """Another process holds the lock of a directory."""


class DirectoryLock:
    """Held from ``acquire`` to ``release``; a second holder, in this process or another, is refused by name.

    The file stays when released, empty: removing it would let two waiting processes lock two different files.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / LOCK
        self._owner: int | None = None

    def acquire(self) -> Self:
        """Take the lock. Raises ResourceError that names the process and machine that hold it."""
        with self._exclusive() as descriptor:
            holder = _read_holder(descriptor)
            if holder and _holds(holder):
                self._refuse(holder)
            mine = {"pid": os.getpid(), "started": process_started(os.getpid()), "host": platform.node()}
            _write_holder(descriptor, json.dumps(mine))
        self._owner = os.getpid()
        return self

    def release(self) -> None:
        """Give the lock back; does nothing in a forked child or when it is not held."""
        if self._owner == os.getpid() and self.path.parent.exists():
            with self._exclusive() as descriptor:
                _write_holder(descriptor, "")
        self._owner = None

    def __enter__(self) -> Self:
        return self.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()

    @contextmanager
    def _exclusive(self) -> Iterator[int]:
        """The open lock file, with other processes kept out while its content is looked at and changed."""
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        except OSError as error:
            raise ResourceError(
                "cannot lock the directory",
                where=Place(file=str(self.path)),
                why=error.strerror or str(error),
                fix="choose a directory that this user can write to",
            ) from error
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _refuse(self, holder: dict[str, Any]) -> None:
        here = holder["host"] == platform.node()
        raise DirectoryInUse(
            "another run is using this directory",
            where=Place(file=str(self.path.parent)),
            why=f"process {holder['pid']} on {holder['host']} holds it",
            fix="wait for it to end or stop it" if here else f"if nothing runs there any more, delete {self.path}",
        )


def _holds(holder: dict[str, Any]) -> bool:
    """Whether the holder may still be alive; on another machine this cannot be seen, so it counts as alive."""
    if holder["host"] != platform.node():
        return True
    return holder["started"] == process_started(int(holder["pid"]))


def _read_holder(descriptor: int) -> dict[str, Any] | None:
    """Who holds the lock; None when free or when the writer died while writing."""
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return holder if {"pid", "started", "host"} <= holder.keys() and isinstance(holder["pid"], int) else None
    except (ValueError, AttributeError):
        return None


def _write_holder(descriptor: int, content: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, content.encode(), 0)
    os.fsync(descriptor)


# -- folders in the making ---------------------------------------------------------------------------------------------
@contextmanager
def marked_in_use(directory: Path) -> Iterator[None]:
    """Until the end of this, or of the process, ``is_in_use`` says so to every process of this machine."""
    with _mark(directory, exclusive=False):
        yield


def is_in_use(directory: Path) -> bool:
    """Whether a process marks the directory; also where the system cannot tell."""
    with _mark(directory, exclusive=True) as alone:
        return not alone


@contextmanager
def _mark(directory: Path, *, exclusive: bool) -> Iterator[bool]:
    """Whether the directory could be locked, for as long as this lasts. Windows cannot open directories: always."""
    descriptor, marked = -1, True
    if fcntl is not None:
        try:
            descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError:
            marked = False
    try:
        yield marked
    finally:
        if descriptor >= 0:
            os.close(descriptor)
