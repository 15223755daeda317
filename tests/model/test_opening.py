"""Opening by folder, run folder, package, GGUF and hub id; kinds and heads; every refusal says what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5Config

from uplift.core.errors import ModelError, ResourceError
from uplift.core.recipe import GgufModel, HfModel, PackageModel
from uplift.data.packages import cached
from uplift.model.opening import kind_of, model_kind, open_model, resolve_model
from uplift.testing.tiny import tiny_causal, tiny_encoder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def causal(tmp_path_factory) -> Path:
    return tiny_causal(tmp_path_factory.mktemp("causal") / "model")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder") / "model")


def opened(folder: Path | str, head: str = "language", labels: tuple[str, ...] = (), seed: int = 0, base_dir: Path = Path()):
    return open_model(HfModel(id=str(folder)), head=head, labels=labels, base_dir=base_dir, device=CPU, seed=seed)  # type: ignore[arg-type]


def test_opens_relative_to_the_recipe_and_from_a_run_folder(causal):
    model = opened("model", base_dir=causal.parent)
    assert model.kind == "causal" and model.head_kind == "language" and not model.training
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert opened(causal.parent).identity["weights_sha256"] == model.identity["weights_sha256"]
    assert set(model.identity) == {
        "model",
        "weights_sha256",
        "configuration_sha256",
        "tokenizer_sha256",
        "template_sha256",
    }
    assert all(len(model.identity[name]) == 64 for name in model.identity if name != "model")


def test_kinds(causal, encoder):
    assert model_kind(HfModel(id=str(causal)), Path()) == "causal"
    assert model_kind(HfModel(id=str(encoder)), Path()) == "encoder"
    with pytest.raises(ModelError, match="encoder-decoder"):
        kind_of(T5Config(), Path("x"))


def test_an_encoder_has_no_language_head(encoder):
    with pytest.raises(ModelError, match="no language head") as caught:
        opened(encoder, head="language")
    assert "classifier" in caught.value.fix


def test_new_heads_come_from_the_seed_alone(encoder, causal):
    for folder in (encoder, causal):
        torch.manual_seed(1)
        first = opened(folder, "class", ("a", "b", "c"), seed=5).parameters_by_name()
        before = torch.get_rng_state()
        second = opened(folder, "class", ("a", "b", "c"), seed=5)
        assert torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(first[name], value) for name, value in second.parameters_by_name().items())
        assert any(note.startswith("new classification head for 3 labels") for note in second.notes)
        third = opened(folder, "class", ("a", "b", "c"), seed=6).parameters_by_name()
        changed = {name for name in first if not torch.equal(first[name], third[name])}
        assert changed and all("score" in name or "classifier" in name or "pooler" in name for name in changed)
        assert second.config.id2label == {0: "a", 1: "b", 2: "c"}


@pytest.mark.parametrize("labels", [("x", "y"), ("b", "a"), ("a", "b", "c")])
def test_a_head_trained_for_other_labels_is_not_kept(encoder, tmp_path, labels):
    model = opened(encoder, "class", ("a", "b"))
    with torch.no_grad():
        model.pretrained.classifier.weight.fill_(7.0)
    model.save(tmp_path / "saved")
    again = opened(tmp_path / "saved", "class", labels)
    assert float(again.pretrained.classifier.weight.detach().abs().max()) < 1
    assert again.pretrained.classifier.weight.shape[0] == len(labels)
    assert float(opened(tmp_path / "saved", "class", ("a", "b")).pretrained.classifier.weight.detach().mean()) == 7.0


def test_missing_padding_token_is_the_end_token(causal, tmp_path):
    folder = Path(shutil.copytree(causal, tmp_path / "m"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("pad_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": None}))
    model = opened(folder)
    assert model.tokenizer.pad_token_id == model.tokenizer.eos_token_id == model.config.pad_token_id
    assert len(model.tokenizer) <= model.head_weight.shape[0] and any("padding token" in note for note in model.notes)


def test_incomplete_weights_are_refused(causal, tmp_path):
    folder = Path(shutil.copytree(causal, tmp_path / "m"))
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if "down_proj" in name)
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 tensors.*down_proj"):
        opened(folder)
    with pytest.raises(ModelError, match="lack 1 tensors"):
        opened(folder, "class", ("a", "b"))


def test_a_foreign_tokenizer_is_refused(causal, tmp_path):
    folder = tiny_causal(tmp_path / "m", vocab_size=200, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    with pytest.raises(ModelError, match="tokenizer has"):
        opened(folder)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_broken_tokenizers(causal, tmp_path, file):
    folder = Path(shutil.copytree(causal, tmp_path / "m"))
    (folder / file).write_text("{")
    with pytest.raises(ModelError) as caught:
        opened(folder)
    assert caught.value.fix


def test_what_is_not_there(tmp_path):
    with pytest.raises(ModelError, match="no folder"):
        opened("./no such/folder/at/all")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        opened(tmp_path / "empty")
    (tmp_path / "empty" / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="adapter without its base"):
        opened(tmp_path / "empty")


def test_a_hub_id_offline_says_what_to_do():
    with pytest.raises(ResourceError, match="cannot be fetched") as caught:
        opened("no-such-owner/no-such-model")
    assert "smollm2-135m-instruct" in caught.value.fix and caught.value.exit_code == 75


def test_resolve_model(causal, tmp_path):
    assert resolve_model(str(causal)) == HfModel(id=str(causal))
    assert resolve_model(str(causal.parent)) == HfModel(id=str(causal))
    assert resolve_model("model", causal.parent).id == str(causal)  # type: ignore[union-attr]
    assert resolve_model("x/y.gguf") == GgufModel(path="x/y.gguf")
    assert resolve_model("minilm-l6") == PackageModel(name="minilm-l6")
    assert resolve_model("owner/name") == HfModel(id="owner/name")
    with pytest.raises(ModelError, match="smollm2") as caught:
        resolve_model("smollm2-135m-instuct")
    assert "did you mean `smollm2-135m-instruct`" in caught.value.fix
    for text in (str(tmp_path), "./nothing/here/x", "a b"):
        with pytest.raises(ModelError):
            resolve_model(text)


# -- the packaged models -----------------------------------------------------------------------------------------------
def needs(name: str) -> None:
    if not cached(name):
        pytest.skip(f"the packaged model {name} is not in the cache")


@pytest.mark.slow
def test_packaged_encoder_opens_packed():
    needs("minilm-l6")
    model = open_model(PackageModel(name="minilm-l6"), head="class", labels=("a", "b"), base_dir=Path(), device=CPU, seed=0)
    assert model.kind == "encoder" and model.layout.packed and model.longest == 512 and len(model.layers) == 6
    ids = [model.tokenizer(text)["input_ids"] for text in ("A warm film.", "It rained all day, and I stayed at home.")]
    lengths = tuple(map(len, ids))
    row = torch.tensor([sum(ids, [])])
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    with torch.no_grad():
        found = model.class_logits(model.hidden(model.embed(row), positions, lengths), lengths)
        expected = torch.cat([model.pretrained(torch.tensor([document])).logits for document in ids])
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_gguf_is_converted_once_and_exactly(tmp_path, monkeypatch):
    needs("smollm2-135m-instruct")
    from uplift.data.packages import fetch

    path = fetch("smollm2-135m-instruct")
    monkeypatch.setenv("UPLIFT_CACHE", str(tmp_path))
    spec = GgufModel(path=str(path))
    first = open_model(spec, head="language", base_dir=Path(), device=CPU, seed=0)
    made = next((tmp_path / "converted").glob("*/model.safetensors"))
    stamp = made.stat().st_mtime_ns
    again = open_model(spec, head="language", base_dir=Path(), device=CPU, seed=0)
    assert made.stat().st_mtime_ns == stamp and again.identity == first.identity
    assert first.tokenizer.chat_template and first.layout.packed and len(first.layers) == 30
    import gguf
    import numpy as np

    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    ours = first.parameters_by_name()
    for theirs, name in {"token_embd": "embed_tokens", "blk.7.ffn_down": "layers.7.mlp.down_proj"}.items():
        tensor = tensors[f"{theirs}.weight"]
        exact = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(ours[f"model.{name}.weight"].detach().numpy(), exact)
