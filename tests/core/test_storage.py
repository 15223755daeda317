"""The commit protocol under faults: a crash at every call, damage to every file, a full disk, a second writer."""

from __future__ import annotations

import errno
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from uplift.core import storage
from uplift.core.errors import ResourceError, UpliftError
from uplift.core.lock import is_in_use, marked_in_use
from uplift.core.storage import DamagedFiles, DirectoryLock, Disk

OLD = {"weights.bin": b"old weights " * 50, "state.json": b'{"step": 5}', "nested/part.bin": b"old part"}
NEW = {"weights.bin": b"new weights " * 70, "state.json": b'{"step": 10}', "nested/part.bin": b"new part!"}
CRASHES = ("before", "after", "torn", "power", "power_entries", "power_parent")
"""Ways to stop at one call. The power ones lose unforced content; then all unforced directory entries, or only the parent's."""


class Crash(BaseException):
    """The machine stops here."""


class QuickDisk(Disk):
    """Works, and spares the machine's real disk."""

    def fsync(self, descriptor: int) -> None:
        os.fstat(descriptor)


class FaultyDisk(Disk):
    """Numbers every call; at call ``at`` it crashes in some way, or fails with an errno.

    It keeps what a power loss would take: file content not forced to disk, and directory entries not forced to disk.
    """

    def __init__(self, at: int = -1, crash: str = "", error: int = 0) -> None:
        self.at, self.crash, self.error, self.calls, self.dead = at, crash, error, 0, False
        self.open_files: dict[int, Path] = {}
        self.durable: dict[int, bytes] = {}  # inode -> content that survives a power loss
        self.entries: list[tuple[Path, Callable[[], object]]] = []  # directory, how to undo

    def _call(self, act: Callable[[], object], torn: Callable[[], object] | None = None) -> object:
        if self.dead:
            raise Crash
        index, self.calls = self.calls, self.calls + 1
        if index != self.at:
            return act()
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        if self.crash != "before":
            torn() if self.crash == "torn" and torn else act()
        self.dead = True
        raise Crash

    def open(self, path: Path, flags: int) -> int:
        return int(self._call(lambda: self._opened(path, flags)))  # type: ignore[call-overload]

    def _opened(self, path: Path, flags: int) -> int:
        fresh = bool(flags & os.O_CREAT) and not path.exists()
        descriptor = super().open(path, flags)
        self.open_files[descriptor] = path
        if flags & os.O_CREAT:
            self.durable.setdefault(os.fstat(descriptor).st_ino, b"")
        if fresh:
            self.entries.append((path.parent, lambda: path.unlink(missing_ok=True)))
        return descriptor

    def write(self, descriptor: int, content: memoryview) -> int:
        def half() -> int:
            return super(FaultyDisk, self).write(descriptor, content[: len(content) // 2])

        return int(self._call(lambda: super(FaultyDisk, self).write(descriptor, content), half))  # type: ignore[call-overload]

    def fsync(self, descriptor: int) -> None:
        self._call(lambda: self._synced(descriptor))

    def _synced(self, descriptor: int) -> None:
        path = self.open_files[descriptor]
        if path.is_dir():
            self.entries = [entry for entry in self.entries if entry[0] != path]
        else:
            self.durable.pop(path.stat().st_ino, None)

    def close(self, descriptor: int) -> None:
        self._call(lambda: super(FaultyDisk, self).close(descriptor))

    def rename(self, source: Path, target: Path) -> None:
        self._call(lambda: self._renamed(source, target))

    def _renamed(self, source: Path, target: Path) -> None:
        if source.name.startswith(storage.TEMPORARY) and source.is_dir() and not target.name.startswith("."):
            lost = [path for path in source.rglob("*") if path.stat().st_ino in self.durable]
            lost += [place for place, _ in self.entries if place == source or source in place.parents]
            assert not lost, f"made visible before it was durable: {lost}"
        replaced = target.read_bytes() if target.is_file() else None

        def undo() -> None:
            os.replace(target, source)
            if replaced is not None:
                target.write_bytes(replaced)

        super().rename(source, target)
        self.entries.append((target.parent, undo))

    def unlink(self, path: Path) -> None:
        def act() -> None:
            content = path.read_bytes()
            super(FaultyDisk, self).unlink(path)
            self.entries.append((path.parent, lambda: path.write_bytes(content)))

        self._call(act)

    def mkdir(self, path: Path) -> None:
        self._call(
            lambda: (super(FaultyDisk, self).mkdir(path), self.entries.append((path.parent, lambda: shutil.rmtree(path, True))))
        )

    def rmdir(self, path: Path) -> None:
        self._call(
            lambda: (super(FaultyDisk, self).rmdir(path), self.entries.append((path.parent, lambda: path.mkdir(exist_ok=True))))
        )

    def lose_power(self, root: Path) -> None:
        """Take away what was not forced to disk."""
        if self.crash.startswith("power"):
            for path in root.rglob("*"):
                if path.is_file() and path.stat().st_ino in self.durable:
                    path.write_bytes(self.durable[path.stat().st_ino])
        for place, undo in reversed(self.entries):
            if self.crash == "power_entries" or (self.crash == "power_parent" and place == root):
                undo()


def fill(content: dict[str, bytes]) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        storage.disk.mkdir(directory / "nested")
        for name, data in content.items():
            storage.write_file(directory / name, data)

    return write


def content_of(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != storage.MANIFEST)
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def leftovers(parent: Path) -> list[Path]:
    return [path for path in parent.iterdir() if path.name.startswith((storage.TEMPORARY, storage.ASIDE))]


def refuse_damage(path: Path, message: str) -> None:
    raise AssertionError(f"{path}: {message}")


@pytest.fixture
def use_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Disk], None]]:
    yield lambda disk: monkeypatch.setattr(storage, "disk", disk)


def count_calls(use_disk: Callable[[Disk], None], prepare: Callable[[], object], act: Callable[[], object]) -> int:
    use_disk(QuickDisk())
    prepare()
    disk = FaultyDisk()
    use_disk(disk)
    act()
    return disk.calls


def crash_everywhere(
    root: Path,
    use_disk: Callable[[Disk], None],
    prepare: Callable[[], None],
    act: Callable[[], object],
    check: Callable[[], None],
) -> int:
    """Crash at every call of ``act`` in every way; ``check`` recovers and judges. Returns the number of crashes."""

    def fresh() -> None:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        prepare()

    calls = count_calls(use_disk, fresh, act)
    for at in range(calls):
        for crash in CRASHES:
            use_disk(QuickDisk())
            fresh()
            disk = FaultyDisk(at, crash)
            use_disk(disk)
            with pytest.raises(Crash):
                act()
            disk.lose_power(root)
            use_disk(QuickDisk())
            check()
    return calls * len(CRASHES)


def test_crash_at_every_call_of_a_commit_recovers_to_the_newest_committed(tmp_path: Path, use_disk: Callable) -> None:
    root = tmp_path / "checkpoints"
    outcomes = set()

    def check() -> None:
        newest = storage.newest_verified(root, refuse_damage)
        assert newest is not None
        expected = {"step-00000005": OLD, "step-00000010": NEW}[newest.name]
        assert content_of(newest) == expected
        assert not leftovers(root)
        storage.verify_directory(root / "step-00000005")
        outcomes.add(newest.name)
        storage.commit_directory(root / "step-00000010", fill(NEW), {"step": 10})
        assert storage.newest_verified(root, refuse_damage) == root / "step-00000010"
        assert not leftovers(root)

    crashes = crash_everywhere(
        root,
        use_disk,
        lambda: storage.commit_directory(root / "step-00000005", fill(OLD), {"step": 5}) and None,
        lambda: storage.commit_directory(root / "step-00000010", fill(NEW), {"step": 10}),
        check,
    )
    assert crashes > 100
    assert outcomes == {"step-00000005", "step-00000010"}


def test_crash_at_every_call_of_a_replacement_leaves_one_whole_version(tmp_path: Path, use_disk: Callable) -> None:
    root = tmp_path / "run"
    seen = set()

    def check() -> None:
        storage.recover(root)
        storage.verify_directory(root / "model")
        content = content_of(root / "model")
        assert content in (OLD, NEW)
        assert not leftovers(root)
        seen.add(content == NEW)

    crash_everywhere(
        root,
        use_disk,
        lambda: storage.commit_directory(root / "model", fill(OLD), {}) and None,
        lambda: storage.commit_directory(root / "model", fill(NEW), {}),
        check,
    )
    assert seen == {True, False}


def test_crash_during_the_recovery_from_a_crash(tmp_path: Path, use_disk: Callable) -> None:
    root = tmp_path / "run"

    def interrupted(at: int) -> None:
        shutil.rmtree(root, ignore_errors=True)
        use_disk(QuickDisk())
        root.mkdir()
        storage.commit_directory(root / "model", fill(OLD), {})
        use_disk(FaultyDisk(at, "after"))
        with pytest.raises(Crash):
            storage.commit_directory(root / "model", fill(NEW), {})

    calls = count_calls(
        use_disk,
        lambda: storage.commit_directory(root / "model", fill(OLD), {}),
        lambda: storage.commit_directory(root / "model", fill(NEW), {}),
    )
    recoveries = 0
    for first in range(calls):
        interrupted(first)
        counter = FaultyDisk()
        use_disk(counter)
        storage.recover(root)
        recoveries += counter.calls
        for second in range(counter.calls):
            interrupted(first)
            disk = FaultyDisk(second, CRASHES[second % len(CRASHES)])
            use_disk(disk)
            with pytest.raises(Crash):
                storage.recover(root)
            disk.lose_power(root)
            use_disk(QuickDisk())
            storage.recover(root)
            storage.verify_directory(root / "model")
            assert content_of(root / "model") in (OLD, NEW)
    assert recoveries > 50


def test_crash_at_every_call_of_pruning_keeps_the_newest(tmp_path: Path, use_disk: Callable) -> None:
    root = tmp_path / "checkpoints"

    def prepare() -> None:
        for step in (1, 2, 3):
            storage.commit_directory(root / f"step-{step:08d}", fill(NEW), {"step": step})

    def check() -> None:
        newest = storage.newest_verified(root, refuse_damage)
        assert newest == root / "step-00000003"
        assert not leftovers(root)

    crash_everywhere(root, use_disk, prepare, lambda: storage.prune(root, keep=1), check)


def test_crash_at_every_call_of_an_atomic_write_leaves_old_or_new(tmp_path: Path, use_disk: Callable) -> None:
    root = tmp_path / "run"
    file = root / "report.json"
    seen = set()

    def check() -> None:
        seen.add(file.read_text())
        storage.recover(root)
        assert not leftovers(root)

    crash_everywhere(
        root, use_disk, lambda: storage.write_atomically(file, "old"), lambda: storage.write_atomically(file, "new"), check
    )
    assert seen == {"old", "new"}


def test_what_was_reported_as_committed_survives_a_power_loss(tmp_path: Path, use_disk: Callable) -> None:
    disk = FaultyDisk(crash="power_entries")
    use_disk(disk)
    storage.commit_directory(tmp_path / "a" / "model", fill(NEW), {})
    storage.write_atomically(tmp_path / "b" / "report.json", "{}")
    disk.lose_power(tmp_path)
    storage.verify_directory(tmp_path / "a" / "model")
    assert (tmp_path / "b" / "report.json").read_text() == "{}"


def test_every_random_bit_flip_is_found_and_named(tmp_path: Path) -> None:
    storage.commit_directory(tmp_path / "step-00000005", fill(OLD), {"step": 5, "loss": 0.25})
    target = tmp_path / "step-00000010"
    storage.commit_directory(target, fill(NEW), {"step": 10, "loss": 0.125})
    files = [path for path in target.rglob("*") if path.is_file()]
    rng = random.Random(7)
    for number in range(240):
        file = files[number % len(files)]
        good = file.read_bytes()
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        file.write_bytes(bad)
        name = file.relative_to(target).as_posix()
        with pytest.raises(DamagedFiles) as caught:
            storage.verify_directory(target)
        assert list(caught.value.problems) == [name]
        told: list[tuple[Path, str]] = []
        assert storage.newest_verified(tmp_path, lambda path, text, told=told: told.append((path, text))) is not None
        assert [path for path, _ in told] == [target]
        assert name in told[0][1]
        file.write_bytes(good)
    storage.verify_directory(target)


def _truncate(directory: Path) -> set[str]:
    (directory / "weights.bin").write_bytes(NEW["weights.bin"][:-1])
    return {"weights.bin"}


def _empty_manifest(directory: Path) -> set[str]:
    (directory / storage.MANIFEST).write_bytes(b"")
    return {storage.MANIFEST}


def _swap(directory: Path) -> set[str]:
    (directory / "weights.bin").rename(directory / "spare")
    (directory / "state.json").rename(directory / "weights.bin")
    (directory / "spare").rename(directory / "state.json")
    return {"weights.bin", "state.json"}


def _delete(directory: Path) -> set[str]:
    (directory / "nested/part.bin").unlink()
    return {"nested/part.bin"}


def _add(directory: Path) -> set[str]:
    (directory / "nested/extra.bin").write_bytes(b"")
    return {"nested/extra.bin"}


def _link(directory: Path) -> set[str]:
    shutil.copy(directory / "state.json", directory.parent / "elsewhere.json")
    (directory / "state.json").unlink()
    (directory / "state.json").symlink_to(directory.parent / "elsewhere.json")
    return {"state.json"}


def _no_manifest(directory: Path) -> set[str]:
    (directory / storage.MANIFEST).unlink()
    return {storage.MANIFEST}


@pytest.mark.parametrize("damage", [_truncate, _empty_manifest, _swap, _delete, _add, _link, _no_manifest])
def test_every_kind_of_damage_names_its_files(tmp_path: Path, damage: Callable[[Path], set[str]]) -> None:
    storage.commit_directory(tmp_path / "step-00000009", fill(OLD), {})
    target = tmp_path / "step-00000010"
    storage.commit_directory(target, fill(NEW), {})
    named = damage(target)
    with pytest.raises(DamagedFiles) as caught:
        storage.verify_directory(target)
    assert set(caught.value.problems) == named
    assert all(name in str(caught.value) for name in named)
    told: list[Path] = []
    assert storage.newest_verified(tmp_path, lambda path, _: told.append(path)) == tmp_path / "step-00000009"
    assert told == [target]


def test_swapped_files_are_told_apart_from_noise(tmp_path: Path) -> None:
    storage.commit_directory(tmp_path / "model", fill(NEW), {})
    _swap(tmp_path / "model")
    with pytest.raises(DamagedFiles, match="holds the content of state.json"):
        storage.verify_directory(tmp_path / "model")


def test_manifest_round_trip_and_order_of_steps(tmp_path: Path) -> None:
    for step in (99, 100_000_000, 7):
        storage.commit_directory(tmp_path / f"step-{step:08d}", fill(NEW), {"step": step, "loss": 1 / 3, "é": [1, None, "x"]})
    (tmp_path / "step-bad").mkdir()
    newest = storage.newest_verified(tmp_path, refuse_damage)
    assert newest is not None and newest.name == "step-100000000"
    manifest = storage.verify_directory(newest)
    assert manifest.meta == {"step": 100_000_000, "loss": 1 / 3, "é": [1, None, "x"]}
    assert manifest.size == sum(len(data) for data in NEW.values())
    assert set(manifest.files) == set(NEW)
    assert storage.newest_verified(tmp_path / "absent", refuse_damage) is None


def test_damage_everywhere_gives_none_and_tells_each(tmp_path: Path) -> None:
    for step in (1, 2):
        storage.commit_directory(tmp_path / f"step-{step:08d}", fill(NEW), {})
        _truncate(tmp_path / f"step-{step:08d}")
    told: list[str] = []
    assert storage.newest_verified(tmp_path, lambda path, _: told.append(path.name)) is None
    assert told == ["step-00000002", "step-00000001"]


def test_prune_keeps_newest_and_protected_and_never_without_a_sound_newest(tmp_path: Path) -> None:
    for step in range(1, 7):
        storage.commit_directory(tmp_path / f"step-{step:08d}", fill(NEW), {})
    removed = storage.prune(tmp_path, keep=2, protect=[tmp_path / "step-00000002"])
    assert sorted(path.name for path in removed) == ["step-00000001", "step-00000003", "step-00000004"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000005", "step-00000006"]
    _truncate(tmp_path / "step-00000006")
    assert storage.prune(tmp_path, keep=1) == []
    assert (tmp_path / "step-00000005").exists()


def test_a_directory_with_foreign_files_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.txt").write_text("ten years of work")
    with pytest.raises(ResourceError, match="not committed by Uplift"):
        storage.commit_directory(tmp_path / "model", fill(NEW), {})
    assert (tmp_path / "model" / "thesis.txt").read_text() == "ten years of work"


def test_the_callback_cannot_write_the_manifest_or_links(tmp_path: Path) -> None:
    with pytest.raises(UpliftError, match="manifest.json"):
        storage.commit_directory(tmp_path / "model", lambda path: storage.write_file(path / storage.MANIFEST, "{}"), {})
    with pytest.raises(UpliftError, match="link"):
        storage.commit_directory(tmp_path / "model", lambda path: (path / "link").symlink_to("/etc/hostname"), {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_failing_disk_at_every_call_is_one_typed_error(tmp_path: Path, use_disk: Callable, number: int) -> None:
    root = tmp_path / "checkpoints"
    target = root / "step-00000010"

    def prepare() -> None:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        storage.commit_directory(root / "step-00000005", fill(OLD), {})

    calls = count_calls(use_disk, prepare, lambda: storage.commit_directory(target, fill(NEW), {}))
    for at in range(calls):
        use_disk(QuickDisk())
        prepare()
        use_disk(FaultyDisk(at, error=number))
        with pytest.raises(ResourceError) as caught:
            storage.commit_directory(target, fill(NEW), {})
        text = str(caught.value)
        assert re.search(r"at least [\d,]+ bytes are needed, [\d,]+ bytes are free", text), text
        assert "step-000000" in text and caught.value.fix and caught.value.exit_code == 75
        use_disk(QuickDisk())
        assert not leftovers(root)
        newest = storage.newest_verified(root, refuse_damage)
        assert newest is not None and content_of(newest) == (NEW if newest == target else OLD)
        storage.commit_directory(target, fill(NEW), {})
        assert storage.newest_verified(root, refuse_damage) == target


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_met_by_plain_writers_names_the_file_and_leaves_nothing(tmp_path: Path) -> None:
    def write(directory: Path) -> None:
        (directory / "weights.bin").write_bytes(b"x" * 1000)
        with open("/dev/full", "wb", buffering=0) as stream:
            stream.write(b"y")

    with pytest.raises(ResourceError, match=r"weights\.bin[\s\S]*the disk is full; at least 1,000 bytes are needed"):
        storage.commit_directory(tmp_path / "model", write, {})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_wrapped_by_a_rust_library_is_understood(tmp_path: Path) -> None:
    def write(directory: Path) -> None:
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(ResourceError, match="the disk is full"):
        storage.commit_directory(tmp_path / "model", write, {})


def test_errors_that_are_not_the_disks_pass_through_and_leave_nothing(tmp_path: Path) -> None:
    def write(directory: Path) -> None:
        (directory / "part").write_bytes(b"x")
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        storage.commit_directory(tmp_path / "model", write, {})
    assert list(tmp_path.iterdir()) == []


LIMITED = """
import resource, sys
from pathlib import Path
from uplift.core import storage
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    storage.commit_directory(Path(sys.argv[1]), lambda path: storage.write_file(path / "weights.bin", b"x" * 10_000), {})
except storage.ResourceError as error:
    print(error)
"""


def test_a_file_size_limit_of_the_system(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path / "model")], capture_output=True, text=True, timeout=60)
    assert "weights.bin" in done.stdout and "at least 10,000 bytes are needed" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_directory_is_a_typed_error(tmp_path: Path, use_disk: Callable) -> None:
    use_disk(FaultyDisk(0, error=errno.EROFS))
    with pytest.raises(ResourceError, match="read-only"):
        storage.write_atomically(tmp_path / "report.json", "x")


def test_preflight_refuses_when_space_is_short(tmp_path: Path) -> None:
    storage.preflight_space(tmp_path / "not" / "yet", 1000)
    free = storage.free_bytes(tmp_path)
    with pytest.raises(ResourceError, match="bytes are free"):
        storage.preflight_space(tmp_path, free)
    with pytest.raises(ResourceError, match="not enough disk space"):
        storage.commit_directory(tmp_path / "model", fill(NEW), {}, needed_bytes=2 * free)
    assert list(tmp_path.iterdir()) == []


def test_write_atomically_makes_parents_and_keeps_text(tmp_path: Path) -> None:
    storage.write_atomically(tmp_path / "a" / "b" / "note.txt", "grüße\n")
    assert (tmp_path / "a" / "b" / "note.txt").read_bytes() == "grüße\n".encode()
    assert (
        storage.file_sha256(tmp_path / "a" / "b" / "note.txt") == __import__("hashlib").sha256("grüße\n".encode()).hexdigest()
    )


def test_temporary_files_of_a_living_process_are_left_alone(tmp_path: Path) -> None:
    other = subprocess.Popen(["sleep", "30"])
    try:
        live = tmp_path / f"{storage.TEMPORARY}step-00000001-{other.pid}"
        live.mkdir()
        storage.recover(tmp_path)
        assert live.exists()
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # dead but not yet collected
        storage.recover(tmp_path)
        assert not live.exists()
    finally:
        other.kill()
        other.wait()


def test_what_another_process_is_writing_is_left_alone_even_where_its_number_means_nothing(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = tmp_path / f"{storage.TEMPORARY}out-{dead.pid}"
    left.mkdir()
    with marked_in_use(left):  # as by a process of another container
        assert is_in_use(left)
        storage.commit_directory(tmp_path / "out", lambda folder: None, {})
    assert left.exists() and not is_in_use(left)
    storage.commit_directory(tmp_path / "out", lambda folder: None, {})
    assert not left.exists()


def test_a_signal_waits_until_the_debris_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(folder: Path) -> None:
        (folder / "a").write_text("a")
        raise KeyboardInterrupt

    unlink = storage.disk.unlink
    monkeypatch.setattr(storage.disk, "unlink", lambda path: (signal.raise_signal(signal.SIGINT), unlink(path)))
    with pytest.raises(KeyboardInterrupt):
        storage.commit_directory(tmp_path / "out", interrupted, {})
    assert list(tmp_path.iterdir()) == []


# -- lock --------------------------------------------------------------------------------------------------------------
HOLD = """
import sys, time
from pathlib import Path
from uplift.core.storage import DirectoryLock
with DirectoryLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_by_name_and_a_dead_one_is_taken_over(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(ResourceError) as caught:
            DirectoryLock(tmp_path).acquire()
        assert str(holder.pid) in str(caught.value) and platform.node() in str(caught.value)
        holder.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
        with DirectoryLock(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()


def test_the_same_process_cannot_hold_it_twice_and_can_after_release(tmp_path: Path) -> None:
    with DirectoryLock(tmp_path), pytest.raises(ResourceError, match=str(os.getpid())):
        DirectoryLock(tmp_path).acquire()
    with DirectoryLock(tmp_path):
        pass


def test_a_reused_process_number_does_not_block(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path)
    lock.path.write_text(f'{{"pid": {os.getpid()}, "started": "another boot:1", "host": "{platform.node()}"}}')
    with lock:
        pass


def test_a_holder_on_another_machine_is_believed_and_the_remedy_named(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path)
    lock.path.write_text('{"pid": 1, "started": "x", "host": "far-away"}')
    with pytest.raises(ResourceError, match=r"far-away[\s\S]*delete"):
        lock.acquire()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x", "started": 1, "host": 2}', "\x00" * 40])
def test_a_lock_torn_by_a_crash_does_not_block(tmp_path: Path, content: str) -> None:
    lock = DirectoryLock(tmp_path)
    lock.path.write_text(content)
    with lock:
        pass


def test_a_forked_child_does_not_release_its_parents_lock(tmp_path: Path) -> None:
    with DirectoryLock(tmp_path) as lock:
        child = os.fork()
        if child == 0:
            lock.release()
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(ResourceError):
            DirectoryLock(tmp_path).acquire()
