"""The calls that change the disk, and what their failures mean in words."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from uplift.core.errors import Place, ResourceError, UpliftError

REASONS: Mapping[int, str] = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than the system allows",
    errno.EIO: "the disk reports an input/output error",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "this user may not write there",
    errno.EPERM: "this user may not write there",
}
_MAKE_ROOM = "make room, then run the same command again: what was committed before is intact"
_ELSEWHERE = "choose a directory that this user can write to"
FIXES: Mapping[int, str] = {
    errno.ENOSPC: _MAKE_ROOM,
    errno.EDQUOT: _MAKE_ROOM,
    errno.EFBIG: _MAKE_ROOM,
    errno.EROFS: _ELSEWHERE,
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
}


class Disk:
    """The only calls of this package that change files; replaced by a shim in fault tests."""

    def open(self, path: Path, flags: int) -> int:
        """A file descriptor for ``path``."""
        return os.open(path, flags | getattr(os, "O_CLOEXEC", 0), 0o644)

    def write(self, descriptor: int, content: memoryview) -> int:
        """Bytes written, possibly fewer than given."""
        return os.write(descriptor, content)

    def fsync(self, descriptor: int) -> None:
        """Force a file's content, or a directory's entries, to the device."""
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        """Close a descriptor."""
        os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Atomic rename that replaces a file or an empty directory."""
        os.replace(source, target)

    def unlink(self, path: Path) -> None:
        """Remove one file."""
        os.unlink(path)

    def mkdir(self, path: Path) -> None:
        """Make one directory."""
        os.mkdir(path)

    def rmdir(self, path: Path) -> None:
        """Remove one empty directory."""
        os.rmdir(path)


def free_bytes(path: Path) -> int:
    """Bytes free for this user on the file system that holds ``path`` (or its nearest existing parent)."""
    return shutil.disk_usage(next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())).free


def preflight_space(path: Path, needed_bytes: int) -> None:
    """Refuse with ResourceError unless ``needed_bytes`` and a margin of 5 % of them are free where ``path`` lies."""
    needed, free = needed_bytes + needed_bytes // 20, free_bytes(path)
    if free < needed:
        raise ResourceError(
            f"not enough disk space for {path}",
            where=Place(file=str(path)),
            why=f"{needed:,} bytes are needed (5 % margin included), {free:,} bytes are free",
            fix=f"free {needed - free:,} bytes, or choose another `output_dir`",
        )


@contextmanager
def explained(path: Path, needed: int) -> Iterator[None]:
    """Turn a full, failing or read-only disk into a ResourceError about ``path``."""
    try:
        yield
    except OSError as error:
        resource_error = as_resource_error(error, path, needed)
        if resource_error is None:
            raise
        raise resource_error from error


def as_resource_error(error: BaseException, path: Path, needed: int) -> ResourceError | None:
    """The ResourceError that says what ``error`` means, or None when it is no failure of the disk."""
    if not isinstance(error, Exception) or isinstance(error, UpliftError):
        return None
    number = getattr(error, "errno", None)
    if not isinstance(number, int):  # Rust libraries wrap the system's error: "... (os error 28)"
        match = re.search(r"os error (\d+)", str(error))
        number = int(match[1]) if match else None
    if number is None or (number not in REASONS and (number == errno.ENOENT or not isinstance(error, OSError))):
        return None
    reason = REASONS.get(number, os.strerror(number))
    return ResourceError(
        f"cannot write {path}",
        where=Place(file=str(path)),
        why=f"{reason}; at least {needed:,} bytes are needed, {free_bytes(path):,} bytes are free",
        fix=FIXES.get(number, "repair the disk, then run the same command again: what was committed before is intact"),
    )
