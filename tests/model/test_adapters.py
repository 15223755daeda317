"""Several saved adapters in one model: switched, disabled, combined, folded into the weights; all in plain PEFT's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from uplift.core.errors import ModelError
from uplift.model.adapters import (
    SavedWeights,
    combine_adapters,
    find_adapter,
    fold_adapter,
    load_adapters,
    task_type,
    use_adapter,
    without_adapter,
)
from uplift.model.language_model import LanguageModel
from uplift.testing.passes import open_tiny, outputs, random_batch
from uplift.testing.tiny import tiny_causal

PLAIN: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_causal(tmp_path_factory.mktemp("base") / "model")


def saved(folder: Path, path: Path, seed: int, **options: Any) -> Path:
    """An adapter with random weights, written by plain PEFT."""
    torch.manual_seed(seed)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(**{**PLAIN, **options}))
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def adapters(folder: Path, tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        "one": saved(folder, root / "one", 1),
        "two": saved(folder, root / "two", 2),
        "stable": saved(folder, root / "stable", 3, use_rslora=True, rank_pattern={"q_proj": 6}),
        "upper": saved(folder, root / "upper", 4, target_modules=["q_proj", "down_proj"], layers_to_transform=[1]),
        "dora": saved(folder, root / "dora", 5, use_dora=True),
        "head": saved(folder, root / "head", 6, modules_to_save=["lm_head"]),
    }


def opened(folder: Path, adapters: dict[str, Path], *names: str) -> LanguageModel:
    model = open_tiny(folder)
    load_adapters(model, {name: adapters[name] for name in names})
    return model


def changes(folder: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """What an adapter adds to each weight, by plain PEFT."""
    plain = AutoModelForCausalLM.from_pretrained(folder)
    before = {name: p.detach().clone() for name, p in plain.named_parameters()}
    merged = PeftModel.from_pretrained(plain, adapter).merge_and_unload()
    return {name: p.detach() - before[name] for name, p in merged.named_parameters()}


def folded_change(folder: Path, model: LanguageModel, name: str) -> dict[str, torch.Tensor]:
    before = open_tiny(folder).parameters_by_name()
    fold_adapter(model, name)
    return {n: (p - before[n]).detach() for n, p in model.parameters_by_name().items()}


def test_each_adapter_acts_alone_and_the_base_is_the_original(folder, adapters) -> None:
    batch = random_batch()
    model = opened(folder, adapters, "one", "two")
    alone = {name: outputs(opened(folder, adapters, name), batch) for name in ("one", "two")}
    assert torch.equal(outputs(model, batch), alone["one"])
    use_adapter(model, "two")
    assert torch.equal(outputs(model, batch), alone["two"]) and not torch.allclose(alone["one"], alone["two"])
    with without_adapter(model):
        assert torch.equal(outputs(model, batch), outputs(open_tiny(folder), batch))
    assert torch.equal(outputs(model, batch), alone["two"])
    assert not any(p.requires_grad for p in model.parameters_by_name().values())


def test_without_an_adapter_nothing_is_disabled(folder) -> None:
    model, batch = open_tiny(folder), random_batch()
    with without_adapter(model):
        assert torch.equal(outputs(model, batch), outputs(open_tiny(folder), batch))


@pytest.mark.parametrize("names", [("one", "two"), ("one", "stable"), ("upper", "one"), ("stable", "upper", "two")])
@pytest.mark.parametrize("method", ["cat", "svd"])
def test_the_combination_is_the_weighted_sum_of_the_changes(folder, adapters, names, method) -> None:
    weights = dict(zip(names, (0.7, -0.4, 1.5), strict=False))
    model = opened(folder, adapters, *names)
    name = combine_adapters(model, weights, method, rank=None if method == "cat" else 18)
    found = folded_change(folder, model, name)
    expected = {n: torch.zeros_like(p) for n, p in found.items()}
    for adapter, weight in weights.items():
        for n, change in changes(folder, adapters[adapter]).items():
            expected[n] += weight * change
    assert max(float((found[n] - expected[n]).abs().max()) for n in found) < 2e-6
    assert max(float(change.abs().max()) for change in expected.values()) > 1e-2


def test_a_smaller_rank_is_the_best_approximation(folder, adapters) -> None:
    model = opened(folder, adapters, "one", "two")
    exact = folded_change(folder, opened(folder, adapters, "one"), "one")["model.layers.0.mlp.up_proj.weight"]
    combine_adapters(model, {"one": 1.0, "two": 0.0}, "svd", rank=2)
    found = folded_change(folder, model, "combined")["model.layers.0.mlp.up_proj.weight"]
    u, s, vh = torch.linalg.svd(exact)
    assert (found - u[:, :2] * s[:2] @ vh[:2]).abs().max() < 1e-6


def test_linear_sums_the_matrices(folder, adapters) -> None:
    model = opened(folder, adapters, "one", "two")
    layer = model.pretrained.get_submodule("model.layers.0.mlp.up_proj")
    parts = [(layer.lora_A[n].weight.clone(), layer.lora_B[n].weight.clone()) for n in ("one", "two")]
    combine_adapters(model, {"one": 0.5, "two": 0.5}, "linear")
    a, b = sum(p[0] for p in parts), sum(p[1] for p in parts)
    combined = layer.lora_B["combined"].weight @ layer.lora_A["combined"].weight * layer.scaling["combined"]
    assert torch.allclose(combined, 0.5 * layer.scaling["one"] * b @ a, atol=1e-6)
    with pytest.raises(ModelError, match="cannot combine"):
        combine_adapters(opened(folder, adapters, "one", "stable"), {"one": 0.5, "stable": 0.5}, "linear")


def test_a_saved_combination_loads_in_plain_peft(folder, adapters, tmp_path) -> None:
    model, batch = opened(folder, adapters, "upper", "stable"), random_batch((8,))
    name = combine_adapters(model, {"upper": 0.5, "stable": 0.5})
    SavedWeights.of(model.peft, name).save(tmp_path)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path).eval()
    with torch.no_grad():
        assert (plain(input_ids=batch.ids).logits - outputs(model, batch)).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["one", "stable", "dora"])
def test_folding_keeps_the_outputs(folder, adapters, name) -> None:
    model, batch = opened(folder, adapters, name), random_batch()
    apart = outputs(model, batch)
    fold_adapter(model, name)
    assert model.peft is None and not any("lora" in n for n in model.parameters_by_name())
    assert (outputs(model, batch) - apart).abs().max() < 1e-5
    assert all(p.requires_grad for p in model.parameters_by_name().values())


@pytest.mark.parametrize(("name", "words"), [("dora", "DoRA"), ("head", "head of its own")])
def test_what_does_not_add_up_is_refused(folder, adapters, name, words) -> None:
    model = opened(folder, adapters, "one", name)
    with pytest.raises(ModelError, match=words):
        combine_adapters(model, {"one": 1.0, name: 1.0})


def test_unknown_names_and_places(folder, adapters, tmp_path) -> None:
    model = opened(folder, adapters, "one")
    for action in (lambda: use_adapter(model, "three"), lambda: fold_adapter(model, "three")):
        with pytest.raises(ModelError, match="there is no adapter `three`"):
            action()
    with pytest.raises(ModelError, match="has an adapter already"):
        load_adapters(model, {"two": adapters["two"]})
    with pytest.raises(ModelError, match="holds no adapter"):
        find_adapter(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "adapter").symlink_to(adapters["one"])
    assert find_adapter(tmp_path) == tmp_path / "model" / "adapter"
    assert find_adapter(adapters["one"]) == adapters["one"] and task_type(adapters["one"]) == "CAUSAL_LM"


def test_adapters_that_do_not_fit_are_refused(adapters, folder, tmp_path) -> None:
    other = tiny_causal(tmp_path / "other", hidden_size=64)
    with pytest.raises(ModelError, match="does not fit the model"):
        load_adapters(open_tiny(other), {"one": adapters["one"]})
    copy = tmp_path / "pissa"
    saved(folder, copy, 7)
    settings = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(settings | {"init_lora_weights": "pissa_niter_4"}))
    with pytest.raises(ModelError, match="taken out of the base"):
        load_adapters(open_tiny(folder), {"one": copy})
