"""Files written piece by piece, scratch files, and steps read from a file."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import pytest

from uplift.core import storage
from uplift.core.errors import RecipeErrors, ResourceError
from uplift.core.prepare_section import Decontaminate, Dedup, Repair
from uplift.core.recipe_file import load_prepare
from uplift.core.storage import PieceWriter, scratch_file


def test_pieces_become_one_file(tmp_path: Path) -> None:
    pieces = [bytes([n]) * (n * 9000) for n in range(40)]
    with PieceWriter(tmp_path / "file") as writer:
        for piece in pieces:
            assert writer.write(piece) == len(piece)
        assert writer.tell() == sum(map(len, pieces))
    content = (tmp_path / "file").read_bytes()
    assert content == b"".join(pieces) and writer.sha256() == hashlib.sha256(content).hexdigest()


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, content: memoryview) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(storage.disk, "write", full, raising=False)
    with pytest.raises(ResourceError, match="cannot write"), PieceWriter(tmp_path / "file") as writer:
        writer.write(b"x")


def test_a_scratch_file_has_no_name(tmp_path: Path) -> None:
    with scratch_file(tmp_path) as stream:
        stream.write(b"abc")
        stream.seek(0)
        assert stream.read() == b"abc" and not list(tmp_path.iterdir())


def test_steps_stand_alone_or_in_a_recipe(tmp_path: Path) -> None:
    file = tmp_path / "steps.yaml"
    for text in ("prepare: [{}]", "model: x\ndata: {{prepare: [{}]}}", "base: {{data: {{prepare: [{}]}}}}\narms: []"):
        file.write_text(text.format("repair, {use: dedup, near: false}, decontaminate"))
        assert load_prepare(file) == [Repair(), Dedup(near=False), Decontaminate()]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prepare: [{use: dedup, neer: 1}]", r"steps.yaml:1:\d+ \(prepare\[0\].neer\).*\n.*\n.*did you mean `near`"),
        ("data:\n  prepare: [foo]", r"steps.yaml:2:\d+ \(data.prepare\[0\]\): .*no kind \"foo\""),
        ("model: x", "there are no steps in this file"),
        ("prepare: 3", "`prepare` cannot be 3"),
        ("prepare: [{use: quality, model: x}]", "or every text passes"),
    ],
)
def test_broken_steps_are_placed(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "steps.yaml").write_text(text)
    with pytest.raises(RecipeErrors, match=told):
        load_prepare(tmp_path / "steps.yaml")
