"""The examination of a machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from uplift.verbs import doctor as room
from uplift.verbs.doctor import Check, doctor, release, version_check


def test_versions_are_told_apart() -> None:
    assert release("2.13.0+cpu") == (2, 13, 0) and release("odd") == ()
    assert version_check("torch", None, "2.11", "2.13").status == "FAIL"
    assert version_check("torch", "2.10.1", "2.11", "2.13").status == "FAIL"
    assert version_check("torch", "2.11.0", "2.11", "2.13").status == "OK"
    assert version_check("torch", "2.13.5+cpu", "2.11", "2.13").status == "OK"
    assert version_check("torch", "2.14.0", "2.11", "2.13").status == "WARN"
    assert all(check.remedy for check in [version_check("x", each, "2", "3") for each in (None, "1", "4")])


def test_this_machine_has_all_lines(tmp_path: Path) -> None:
    checks = {check.name: check for check in doctor(tmp_path / "not" / "yet")}
    assert {"python", "torch", "torchvision", "memory", "disk", "cpu", "matrix products", "bf16", "minilm-l6"} <= set(checks)
    assert "GFLOP/s" in checks["matrix products"].detail
    assert not [check for check in checks.values() if check.status == "FAIL"]


def test_a_check_that_fails_itself_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[Check]:
        raise OSError("no such device")

    monkeypatch.setattr(room, "_memory", broken)
    assert any(check.status == "WARN" and "no such device" in check.detail for check in doctor(tmp_path, speed=False))


def test_little_memory_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        total, available = 2**33, 2**29

    monkeypatch.setattr(room.psutil, "virtual_memory", Memory)
    memory = next(check for check in doctor(tmp_path, speed=False) if check.name == "memory")
    assert memory.status == "FAIL" and memory.remedy
