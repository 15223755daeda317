"""Model intake: what could run code or lies about its size is refused with the reason, before any library reads it."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from uplift.core.errors import ModelError
from uplift.core.recipe import HfModel
from uplift.model.files import INDEX, check_model_folder, check_safetensors, weight_files
from uplift.model.opening import open_model
from uplift.testing.tiny import tiny_causal

CODE_EVENTS = ("exec", "import", "compile", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect")


@pytest.fixture(scope="session")
def sound(tmp_path_factory) -> Path:
    return tiny_causal(tmp_path_factory.mktemp("sound") / "model")


@pytest.fixture
def folder(sound, tmp_path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(sound, tmp_path / "model"))


def change(path: Path, **settings: object) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **settings}))


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        open_model(HfModel(id=str(folder)), head="language", base_dir=Path(), device=torch.device("cpu"), seed=0)
    error = caught.value
    assert error.what and error.fix and error.where is not None
    return str(error)


def test_a_sound_folder_passes(folder):
    assert check_model_folder(folder)["model_type"] == "llama"
    assert weight_files(folder) == [folder / "model.safetensors"]


@pytest.mark.parametrize(
    ("file", "settings", "word"),
    [
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}, "auto_map"),
        ("config.json", {"_attn_implementation_internal": "someone/kernel"}, "_attn_implementation_internal"),
        ("config.json", {"_attn_implementation": "someone/kernel"}, "_attn_implementation"),
        ("config.json", {"attn_implementation": "someone/kernel"}, "attn_implementation"),
        ("config.json", {"_experts_implementation_internal": "someone/kernel"}, "_experts_implementation_internal"),
        ("config.json", {"text_config": {"inner": [{"trust_remote_code": True}]}}, "trust_remote_code"),
        ("config.json", {"trust_remote_code": False}, "trust_remote_code"),
        ("config.json", {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}, "auto_map"),
        ("generation_config.json", {"custom_generate": "someone/repository"}, "custom_generate"),
        ("processor_config.json", {"auto_map": {"AutoProcessor": "evil.Processor"}}, "auto_map"),
    ],
)
def test_keys_that_could_run_code(folder, file, settings, word):
    change(folder / file, **settings)
    message = refused(folder)
    assert word in message and file in message


def test_deep_nesting_is_refused(folder):
    deep: object = 1
    for _ in range(90):
        deep = [deep]
    change(folder / "config.json", extra=deep)
    assert "nested too deeply" in refused(folder)
    (folder / "config.json").write_text("[" * 100_000)
    assert "config.json" in refused(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"model_type": 3}', '{"model_type": "no-such"}', "{}"])
def test_broken_configurations(folder, content):
    (folder / "config.json").write_text(content)
    assert "config.json" in refused(folder)


class Bomb:
    """Writes a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.ckpt", "model.pth", "model.pkl"])
def test_pickled_weights_are_never_opened(folder, tmp_path, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    message = refused(folder)
    assert name in message and "run any program" in message and "safetensors" in message
    assert not (tmp_path / "boom").exists()


def test_pickles_beside_sound_weights_are_left_alone(folder, tmp_path):
    for name in ("training_args.bin", "pytorch_model.bin", "optimizer.pt"):
        (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    open_model(HfModel(id=str(folder)), head="language", base_dir=Path(), device=torch.device("cpu"), seed=0)
    assert not (tmp_path / "boom").exists()


def test_refusing_runs_no_code(folder):
    change(folder / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"})
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    seen: list[str] = []
    active = [True]
    sys.addaudithook(lambda event, arguments: seen.append(event) if active[0] and event in CODE_EVENTS else None)
    try:
        with pytest.raises(ModelError):
            check_model_folder(folder)
    finally:
        active[0] = False
    assert not seen


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/etc/passwd",
        "..\\model.safetensors",
        "a/b.safetensors",
        "x.bin",
        ".safetensors",
        "C:x.safetensors",
        "",
    ],
)
def test_shard_index_stays_in_its_folder(folder, name):
    shutil.copy(folder / "model.safetensors", folder.parent / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    assert INDEX in refused(folder)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', '{"weight_map": {}}', "nonsense"])
def test_broken_shard_index(folder, content):
    (folder / "model.safetensors").unlink()
    (folder / INDEX).write_text(content)
    assert INDEX in refused(folder)


def test_missing_shard_and_missing_weights(folder):
    (folder / "model.safetensors").unlink()
    assert "no model.safetensors" in refused(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    assert "model-00001-of-00002.safetensors is missing" in refused(folder)


def test_adapter_beside_the_model_is_judged(folder):
    adapter = folder / "adapter"
    adapter.mkdir()
    assert "adapter_config.json" in refused(folder)
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    (adapter / "adapter_model.bin").write_bytes(b"x")
    assert "no safetensors" in refused(folder)
    shutil.copy(folder / "model.safetensors", adapter / "adapter_model.safetensors")
    change(adapter / "adapter_config.json", megatron_config={"a": 1})
    assert "megatron_config" in refused(folder)
    change(adapter / "adapter_config.json", megatron_config=None, auto_mapping={"parent_library": "os"})
    assert "auto_mapping" in refused(folder)


# -- headers -----------------------------------------------------------------------------------------------------------
def with_header(folder: Path, header: object, data: bytes = b"") -> str:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    return refused(folder)


@pytest.mark.parametrize(
    ("entry", "size"),
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, 8),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, 4),
        ({"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}, 12),
        ({"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}, 8),
        ({"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}, 8),
        ({"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 2**82]}, 8),
        ({"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}, 8),
        ({"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}, 4),
        ({"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}, 8),
        ({"dtype": "F32", "shape": "2", "data_offsets": [0, 8]}, 8),
        ({"dtype": "F32", "data_offsets": [0, 8]}, 8),
        ("text", 8),
        (None, 8),
    ],
)
def test_headers_that_lie(folder, entry, size):
    assert "not sound safetensors" in with_header(folder, {"a": entry}, bytes(size))


def test_truncated_and_overlong_files(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for content in (b"", whole[:7], whole[:100], whole[:-1], whole + b"x", (2**62).to_bytes(8, "little") + whole[8:]):
        path.write_bytes(content)
        assert "not sound safetensors" in refused(folder)


def test_overlapping_tensors(folder):
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    assert "not sound" in with_header(folder, {"a": entry, "b": entry}, bytes(8))


def test_mutated_headers_are_refused_or_harmless(folder, tmp_path):
    """Whatever a header says: a ModelError, or a file that the library reads without complaint."""
    rng = random.Random(7)
    header = json.dumps(
        {
            "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
            "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
        }
    )
    path, passed = tmp_path / "mutated.safetensors", 0
    for _ in range(800):
        text = bytearray(header.encode())
        for _ in range(rng.randint(1, 3)):
            text[rng.randrange(len(text))] = rng.choice(b'0123456789[]{}",:- ABF\x00\xff')
        path.write_bytes(len(text).to_bytes(8, "little") + bytes(text) + bytes(32))
        try:
            check_safetensors(path)
        except ModelError:
            continue
        passed += 1
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                assert file.get_tensor(name).numel() <= 32
    assert passed < 400


def test_swapped_bytes_of_a_real_file(folder):
    """Random damage to the header of a real file never gets past opening as anything but an error or equal shapes."""
    rng = random.Random(3)
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    for _ in range(300):
        content = bytearray(whole)
        content[rng.randrange(8 + size)] = rng.randrange(256)
        path.write_bytes(content)
        try:
            check_safetensors(path)
        except ModelError as error:
            assert "not sound" in str(error)
