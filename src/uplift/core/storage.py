"""The commit protocol: files appear on disk whole and verified, or not at all.

A directory is written under a temporary name, each file is forced to disk, a manifest with sizes and sha256 sums is written
last, and one rename makes it visible. "Latest" is the highest *verified* step found by scanning; there is no pointer file
that could lie. Every call that changes the disk goes through ``disk`` so that a test can number and fail each one.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from uplift.core.disk import Disk, as_resource_error, explained, free_bytes, preflight_space
from uplift.core.errors import Place, ResourceError, UpliftError
from uplift.core.interruption import undisturbed
from uplift.core.lock import DirectoryLock, is_in_use, marked_in_use, process_started

__all__ = [
    "DamagedFiles",
    "DirectoryLock",
    "Disk",
    "FileRecord",
    "Manifest",
    "PieceWriter",
    "commit_directory",
    "file_sha256",
    "free_bytes",
    "newest_verified",
    "preflight_space",
    "prune",
    "read_manifest",
    "recover",
    "scratch_file",
    "verify_directory",
    "write_atomically",
    "write_file",
]

MANIFEST = "manifest.json"
SCHEMA = 1
TEMPORARY, ASIDE = ".tmp-", ".old-"
STEP_NAME = re.compile(r"step-(\d{8,})")


disk = Disk()


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and sha256 (hex) of one file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a committed directory holds: relative POSIX name -> record, and the caller's ``meta`` (JSON values)."""

    files: Mapping[str, FileRecord]
    meta: Mapping[str, Any]
    schema: int = SCHEMA

    @property
    def size(self) -> int:
        """Bytes of all files together, the manifest not counted."""
        return sum(record.size for record in self.files.values())


class DamagedFiles(UpliftError):
    """Files of a committed directory are not what was written. ``problems``: file name -> what is wrong with it."""

    exit_code = 65

    def __init__(self, directory: Path, problems: Mapping[str, str]) -> None:
        listed = "; ".join(f"{name}: {problem}" for name, problem in sorted(problems.items()))
        super().__init__(
            f"damaged: {listed}", where=Place(file=str(directory)), fix="restore the files from a copy, or make them again"
        )
        self.directory, self.problems = directory, dict(problems)


# -- writing -----------------------------------------------------------------------------------------------------------
def write_file(path: Path, content: bytes | str) -> None:
    """Write one file in place, not forced to disk: for ``write`` callbacks of ``commit_directory``, which does the rest.

    Raises ResourceError that names the file, the bytes needed and the bytes free.
    """
    data = content.encode() if isinstance(content, str) else content
    with explained(path, len(data)):
        _write(path, data, durable=False)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace ``path`` by ``content`` so that a reader, or a crash at any instant, sees the old or the new file whole.

    Missing parent directories are made. Raises ResourceError that names the file, the bytes needed and the bytes free.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = _temporary(path)
    with explained(path, len(data)):
        _make_directories(path.parent)
        try:
            _write(temporary, data, durable=True)
            disk.rename(temporary, path)
        except BaseException:
            with undisturbed():
                _discard(temporary)
            raise
        _fsync_directory(path.parent)


class PieceWriter(io.RawIOBase):
    """Writes one file piece by piece, not forced to disk: for ``write`` callbacks of ``commit_directory``, which does the rest.

    A binary file object, so libraries can write to it. ``sha256`` is that of everything written so far, in hex. Raises
    ResourceError that names the file when the disk refuses.
    """

    BUFFER = 2**20

    def __init__(self, path: Path) -> None:
        self._path, self._held, self._size, self._hash = path, bytearray(), 0, hashlib.sha256()
        with explained(path, 0):
            self._descriptor: int | None = disk.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, content: Any, /) -> int:
        """Take ``content`` (bytes) whole."""
        size = memoryview(content).nbytes
        self._hash.update(content)
        self._held += content
        self._size += size
        if len(self._held) >= self.BUFFER:
            self._write_held()
        return size

    def tell(self) -> int:
        """Bytes taken so far."""
        return self._size

    def sha256(self) -> str:
        """Of everything written so far."""
        return self._hash.hexdigest()

    def close(self) -> None:
        """Write what is held and close the file."""
        if self._descriptor is not None:
            descriptor = self._descriptor
            try:
                self._write_held()
            finally:
                self._descriptor = None
                disk.close(descriptor)
        super().close()

    def _write_held(self) -> None:
        assert self._descriptor is not None
        with explained(self._path, len(self._held)):
            rest = memoryview(self._held)
            while rest:
                rest = rest[disk.write(self._descriptor, rest) :]
            rest.release()
        self._held = bytearray()


@contextmanager
def scratch_file(folder: Path | None = None) -> Iterator[IO[bytes]]:
    """A file without a name for what does not fit in memory: it is gone when the process ends, however it ends.

    It takes its room in ``folder``, an existing one; None: the system's folder for temporary files.
    """
    with ExitStack() as stack:
        with explained(place := Path(folder or tempfile.gettempdir()), 0):
            stream = stack.enter_context(tempfile.TemporaryFile(dir=place))
        yield stream


def commit_directory(
    target: Path, write: Callable[[Path], None], meta: Mapping[str, Any], *, needed_bytes: int | None = None
) -> Manifest:
    """Make the directory ``target`` from what ``write(temporary directory)`` puts there, in one durable step.

    ``meta`` (JSON values) is kept in the manifest. A target committed earlier is replaced and deleted only after the new one
    verifies; a directory that holds other things is never touched. ``needed_bytes``, when known, is checked against the free
    space first. Raises ResourceError for a full, failing or read-only disk; nothing partial stays behind then.
    """
    with explained(target, needed_bytes or 0):
        _make_directories(target.parent)
    _restore(target)
    _refuse_foreign(target)
    if needed_bytes is not None:
        preflight_space(target.parent, needed_bytes)
    temporary = _temporary(target)
    with suppress(OSError):
        _remove_abandoned(target)
    try:
        _delete(temporary)
        disk.mkdir(temporary)
        with marked_in_use(temporary):
            write(temporary)
            manifest = _seal(temporary, meta)
            _publish(temporary, target)
    except BaseException as error:
        with undisturbed():
            place, written = _newest_file(temporary) or target, _tree_size(temporary)
            _discard(temporary)
            with suppress(OSError):
                _restore(target)
        resource_error = as_resource_error(error, place, max(written, needed_bytes or 0))
        if resource_error is None:
            raise
        raise resource_error from error
    return manifest


def prune(parent: Path, keep: int, protect: Iterable[Path | str] = ()) -> list[Path]:
    """Delete all but the newest ``keep`` step directories and those in ``protect``; returns what was deleted.

    Nothing is deleted unless the newest verifies on re-read. Each one is renamed out of sight before its files go.
    """
    steps = _steps(parent)
    protected = {Path(path).name for path in protect}
    doomed = [path for path in steps[max(keep, 1) :] if path.name not in protected]
    if not doomed or not _is_sound(steps[0]):
        return []
    with explained(parent, 0):
        hidden = [_temporary(path) for path in doomed]
        for path, name in zip(doomed, hidden, strict=True):
            _delete(name)
            disk.rename(path, name)
        _fsync_directory(parent)
        for name in hidden:
            _delete(name)
    return doomed


def _temporary(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")


def _write(path: Path, data: bytes, *, durable: bool) -> None:
    descriptor = disk.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[disk.write(descriptor, rest) :]
        if durable:
            disk.fsync(descriptor)
    finally:
        disk.close(descriptor)


def _fsync(path: Path, flags: int = os.O_RDONLY) -> None:
    descriptor = disk.open(path, flags)
    try:
        disk.fsync(descriptor)
    finally:
        disk.close(descriptor)


def _fsync_directory(path: Path) -> None:
    if hasattr(os, "O_DIRECTORY"):  # systems without it (Windows) cannot open a directory and order renames themselves
        _fsync(path, os.O_RDONLY | os.O_DIRECTORY)


def _make_directories(path: Path) -> None:
    missing = [parent for parent in (path, *path.parents) if not parent.exists()]
    for directory in reversed(missing):
        with suppress(FileExistsError):
            disk.mkdir(directory)
        _fsync_directory(directory.parent)


def _seal(directory: Path, meta: Mapping[str, Any]) -> Manifest:
    """Force every file to disk, then write the manifest, then force the directories."""
    files, directories = {}, [directory]
    for path in sorted(directory.rglob("*")):
        if path.is_symlink() or path.name == MANIFEST and path.parent == directory:
            raise UpliftError(f"{path.name} cannot be part of a committed directory", where=Place(file=str(path)))
        if path.is_dir():
            directories.append(path)
        else:
            _fsync(path)
            files[path.relative_to(directory).as_posix()] = FileRecord(path.stat().st_size, file_sha256(path))
    manifest = Manifest(files, json.loads(json.dumps(meta, allow_nan=False)))
    _write(directory / MANIFEST, _manifest_bytes(manifest), durable=True)
    for path in reversed(directories):
        _fsync_directory(path)
    return manifest


def _publish(temporary: Path, target: Path) -> None:
    aside = target.with_name(f"{ASIDE}{target.name}")
    replacing = target.exists()
    if replacing:
        _delete(aside)
        disk.rename(target, aside)
    disk.rename(temporary, target)
    _fsync_directory(target.parent)
    if replacing:
        verify_directory(target)
        _delete(aside)


def _refuse_foreign(target: Path) -> None:
    if target.is_dir() and not (target / MANIFEST).exists() and any(target.iterdir()):
        raise ResourceError(
            "the directory holds files that were not committed by Uplift",
            where=Place(file=str(target)),
            fix="move it away, or choose another output directory",
        )


def _delete(path: Path) -> None:
    """Remove a file or a tree; a missing one is fine."""
    if path.is_dir() and not path.is_symlink():
        for child in sorted(path.iterdir()):
            _delete(child)
        disk.rmdir(path)
    elif path.is_symlink() or path.exists():
        disk.unlink(path)


def _remove_abandoned(target: Path) -> None:
    """Remove what a process that was killed left of ``target``; what a living one, here or elsewhere, may be writing stays."""
    beginning = f"{TEMPORARY}{target.name}-"
    for leftover in sorted(target.parent.iterdir()):
        owner = leftover.name.removeprefix(beginning) if leftover.name.startswith(beginning) else ""
        if owner.isdecimal() and process_started(int(owner)) is None and leftover.is_dir() and not is_in_use(leftover):
            _delete(leftover)


def _discard(path: Path) -> None:
    """``_delete`` on the way out of a failure: its own errors must not hide the first one."""
    with suppress(OSError):
        _delete(path)


# -- reading -----------------------------------------------------------------------------------------------------------
def file_sha256(path: Path) -> str:
    """sha256 of a file's content in hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a committed directory, itself checked but not the files. Raises DamagedFiles."""
    try:
        content = (directory / MANIFEST).read_bytes()
    except OSError as error:
        raise DamagedFiles(directory, {MANIFEST: "missing" if isinstance(error, FileNotFoundError) else str(error)}) from error
    try:
        manifest = _parse_manifest(content)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedFiles(directory, {MANIFEST: "content changed since it was written"}) from error
    if manifest.schema > SCHEMA:
        raise DamagedFiles(directory, {MANIFEST: f"written by a newer Uplift (schema {manifest.schema})"})
    return manifest


def verify_directory(path: Path) -> Manifest:
    """Re-read every file of a committed directory against its manifest. Raises DamagedFiles that names each bad file."""
    manifest = read_manifest(path)
    found = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_symlink() or not file.is_dir()}
    del found[MANIFEST]
    problems = {name: "not in the manifest" for name in found.keys() - manifest.files.keys()}
    for name, record in manifest.files.items():
        problem = _problem(found.get(name), record, manifest)
        if problem:
            problems[name] = problem
    if problems:
        raise DamagedFiles(path, problems)
    return manifest


def newest_verified(parent: Path, on_damage: Callable[[Path, str], None]) -> Path | None:
    """The child ``step-XXXXXXXX`` with the highest step whose files all verify, or None.

    Each damaged one passed over is told to ``on_damage(path, message)``. What a crash left behind is tidied first.
    """
    if not parent.is_dir():
        return None
    recover(parent)
    for path in _steps(parent):
        try:
            verify_directory(path)
        except DamagedFiles as error:
            on_damage(path, str(error))
        else:
            return path
    return None


def recover(parent: Path) -> None:
    """Finish or undo what a crash interrupted among the children of ``parent``: half replacements and temporary files."""
    with explained(parent, 0):
        for aside in sorted(parent.glob(f"{ASIDE}*")):
            _restore(parent / aside.name.removeprefix(ASIDE))
        for leftover in sorted(parent.glob(f"{TEMPORARY}*")):
            owner = leftover.name.rpartition("-")[2]
            # Another live process may be writing its own commit here; everything else is debris.
            if not owner.isdigit() or int(owner) == os.getpid() or process_started(int(owner)) is None:
                _delete(leftover)


def _restore(target: Path) -> None:
    """Settle a replacement of ``target`` that a crash cut short: the verified one of new and old stays."""
    aside = target.with_name(f"{ASIDE}{target.name}")
    if not aside.exists():
        return
    if not target.exists():
        disk.rename(aside, target)
        _fsync_directory(target.parent)
    elif _is_sound(target):
        _delete(aside)
    elif _is_sound(aside):
        doomed = _temporary(target)
        _delete(doomed)
        disk.rename(target, doomed)
        disk.rename(aside, target)
        _fsync_directory(target.parent)
        _delete(doomed)


def _steps(parent: Path) -> list[Path]:
    """Step directories, newest first."""
    found = [(int(match[1]), child) for child in parent.iterdir() if (match := STEP_NAME.fullmatch(child.name))]
    return [child for _, child in sorted(found, reverse=True)]


def _is_sound(path: Path) -> bool:
    try:
        verify_directory(path)
    except DamagedFiles:
        return False
    return True


def _problem(file: Path | None, record: FileRecord, manifest: Manifest) -> str:
    """What is wrong with one file, in words; empty when nothing is."""
    if file is None:
        return "missing"
    if file.is_symlink() or not file.is_file():
        return "not a plain file"
    try:
        size, digest = file.stat().st_size, file_sha256(file)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if digest == record.sha256:
        return ""
    twins = [name for name, other in manifest.files.items() if other.sha256 == digest]
    if twins:
        return f"holds the content of {twins[0]}"
    return "content changed since it was written" if size == record.size else f"{size} bytes, {record.size} were written"


def _manifest_bytes(manifest: Manifest) -> bytes:
    """Readable JSON whose ``digest`` covers all the rest."""
    files = {name: {"size": record.size, "sha256": record.sha256} for name, record in sorted(manifest.files.items())}
    body = {"schema": manifest.schema, "meta": manifest.meta, "files": files}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True, allow_nan=False).encode()).hexdigest()
    return (json.dumps({"digest": digest, **body}, indent=1, allow_nan=False) + "\n").encode()


def _parse_manifest(content: bytes) -> Manifest:
    body = json.loads(content.decode())
    files = {str(name): FileRecord(int(record["size"]), str(record["sha256"])) for name, record in body["files"].items()}
    manifest = Manifest(files, body["meta"], int(body["schema"]))
    # Written again it must give the same bytes: that covers white space and key order, which the digest cannot see.
    if _manifest_bytes(manifest) != content or any(".." in PurePosixPath(name).parts or name[:1] == "/" for name in files):
        raise ValueError("digest differs")
    return manifest


def _tree_size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) if directory.is_dir() else 0


def _newest_file(directory: Path) -> Path | None:
    files = [path for path in directory.rglob("*") if path.is_file()] if directory.is_dir() else []
    return max(files, key=lambda path: path.stat().st_mtime_ns, default=None)
