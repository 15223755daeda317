"""GGUF headers: sizes are held against the file; conversion is exact, done once and reused."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from uplift.core.errors import ModelError
from uplift.model.gguf_header import check_gguf


@pytest.fixture
def sound(tmp_path) -> Path:
    path = tmp_path / "sound.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_token_list(["a", "b", "c"])
    writer.add_token_scores([0.0, 1.0, 2.0])
    writer.add_tensor("one", np.ones((4, 32), dtype=np.float32))
    writer.add_tensor("two", np.ones((3, 5), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_sound_header(sound):
    header = check_gguf(sound)
    assert header.values["general.architecture"] == "llama" and header.values["tokenizer.ggml.tokens"] == 3
    assert [(t.name, t.shape, t.type, t.size) for t in header.tensors] == [
        ("one", (32, 4), "F32", 512),
        ("two", (5, 3), "F16", 30),
    ]


def spoil(path: Path, offset: int, form: str, value: int) -> None:
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, offset, value)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("offset", "form", "value"),
    [
        (0, "<I", 0),
        (4, "<I", 1),
        (4, "<I", 99),
        (8, "<Q", 2**60),
        (8, "<Q", 3),
        (16, "<Q", 2**60),
        (16, "<Q", 500),
        (24, "<Q", 2**63),
    ],
)
def test_counts_that_lie(sound, offset, form, value):
    spoil(sound, offset, form, value)
    with pytest.raises(ModelError, match="not sound GGUF") as caught:
        check_gguf(sound)
    assert str(sound) in str(caught.value)


@pytest.mark.parametrize("field", ["dimension", "offset", "dimensions", "type"])
def test_tensor_infos_that_lie(sound, field):
    start = sound.read_bytes().index(struct.pack("<Q", 3) + b"one") + 8 + 3
    where = {
        "dimensions": (start, "<I", 5),
        "dimension": (start + 4, "<Q", 2**39),
        "type": (start + 20, "<I", 9999),
        "offset": (start + 24, "<Q", 2**62),
    }
    spoil(sound, *where[field])
    with pytest.raises(ModelError, match="not sound GGUF"):
        check_gguf(sound)


def test_truncation_anywhere_is_noticed(sound):
    whole = sound.read_bytes()
    for size in range(0, len(whole) - 32, 7):  # padding after the last tensor may be missing
        sound.write_bytes(whole[:size])
        with pytest.raises(ModelError, match="not sound GGUF"):
            check_gguf(sound)


def test_mutated_headers_never_crash(sound, tmp_path):
    rng = random.Random(11)
    whole = sound.read_bytes()
    end = len(whole) - 600
    refused = 0
    for _ in range(800):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(end)] = rng.randrange(256)
        sound.write_bytes(content)
        try:
            header = check_gguf(sound)
        except ModelError:
            refused += 1
        else:
            assert sum(tensor.size for tensor in header.tensors) <= len(whole)
    assert refused > 200


def test_a_missing_file(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        check_gguf(tmp_path / "none.gguf")
