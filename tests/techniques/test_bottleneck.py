"""Bottleneck adapters: unchanged at the start, an unchanged base, the same bits after saving, and text from the saved model."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from uplift.core.errors import ModelError, RecipeError
from uplift.core.recipe import HfModel
from uplift.core.recipe_file import load_recipe
from uplift.model.bottleneck import Bottleneck, Bottlenecks, Exit, Spot, bottlenecks, sublayers
from uplift.model.opening import open_model
from uplift.serve.generate import generate
from uplift.techniques.adapt.bottleneck import BottleneckAdapter
from uplift.testing.passes import forward_pass, outputs, random_batch, train_steps
from uplift.testing.tiny import tiny_recipe
from uplift.testing.training import train

FORMS = [("causal", "language"), ("causal", "class"), ("encoder", "class")]
PLACES = [(placement, where) for placement in ("serial", "parallel") for where in ("mlp", "attention", "both")]


def reopened(folder: Path, head: str = "language"):
    labels = ("negative", "positive") if head == "class" else ()
    spec, device = HfModel(id=str(folder)), torch.device("cpu")
    return open_model(spec, head=head, labels=labels, base_dir=Path(), device=device, seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("placement", "where"), PLACES)
def test_the_model_is_unchanged_at_the_start(opener, placement, where):
    for form in FORMS:
        model, batch = opener(*form), random_batch()
        before = outputs(model, batch)
        BottleneckAdapter(placement=placement, where=where).edit(model)
        assert torch.equal(before, outputs(model, batch)), form
        assert len(bottlenecks(model.pretrained)) == (4 if where == "both" else 2)


@pytest.mark.parametrize("where", ["mlp", "both"])
def test_trainable_count_equals_its_formula(opener, where):
    model = opener()
    BottleneckAdapter(width=5, where=where).edit(model)
    trained = {name: p for name, p in model.parameters_by_name().items() if p.requires_grad}
    each = 2 * 32 * 5 + 5 + 32
    assert sum(p.numel() for p in trained.values()) == each * (4 if where == "both" else 2)
    assert all(model.depth(name) in (1, 2) for name in trained)
    model = opener("causal", "class")
    BottleneckAdapter(width=5, where="mlp").edit(model)
    assert sum(p.numel() for p in model.parameters_by_name().values() if p.requires_grad) == 2 * each + 2 * 32


def test_the_formula(opener):
    settings = Bottlenecks(width=3, activation="relu", placement="serial", scale=4.0, spots=[Spot(entry="x", exit="x")])
    torch.manual_seed(0)
    layer, adapter, x = nn.Linear(6, 8), Bottleneck(8, settings), torch.randn(5, 6)
    nn.init.normal_(adapter.up.weight)
    y = layer(x)
    expected = y + 4 * torch.relu(y @ adapter.down.weight.T + adapter.down.bias) @ adapter.up.weight.T
    assert torch.allclose(Exit(layer, adapter, None)(x), expected, atol=1e-5)


@pytest.mark.parametrize("placement", ["serial", "parallel"])
def test_the_parts_of_a_block_see_what_they_should(opener, placement):
    """The feed-forward adapter of a Llama block: over the output of the whole part, or over the part's input."""
    model, batch = opener(), random_batch()
    block = model.layers[0]
    plain = copy.deepcopy(block.mlp)
    BottleneckAdapter(placement=placement, where="mlp").edit(model)
    adapter = block.mlp.down_proj.bottleneck
    nn.init.normal_(adapter.up.weight)
    x = model.embed(batch.ids).detach()
    with torch.no_grad():
        y = plain(x)
        expected = y + adapter(y if placement == "serial" else x)
        assert torch.allclose(block.mlp(x), expected, atol=1e-5)


@pytest.mark.parametrize(("placement", "where"), PLACES)
def test_the_base_stays_and_saving_keeps_every_bit(opener, model_folders, tmp_path: Path, placement, where):
    for form in FORMS:
        model, batch = opener(*form), random_batch()
        technique = BottleneckAdapter(placement=placement, where=where, activation="tanh", scale=2.0, width=6)
        technique.edit(model)
        train_steps(model, technique, batch)
        model = technique.finish(model)
        assert technique.effect().passed, technique.effect()
        expected, folder = outputs(model, batch), tmp_path / f"{form[0]}-{form[1]}"
        assert not torch.equal(expected, outputs(opener(*form), batch))
        model.save(folder)
        again = reopened(folder, form[1])
        assert torch.equal(outputs(again, batch), expected), form
        assert "adapter_sha256" in again.identity and any("bottleneck" in note for note in again.notes)
        again.save(folder / "twice")
        assert torch.equal(outputs(reopened(folder / "twice", form[1]), batch), expected)
    base, saved = (load_file(f / "model.safetensors") for f in (model_folders["causal"], tmp_path / "causal-language"))
    assert base.keys() == saved.keys() and all(torch.equal(base[name], saved[name]) for name in base)
    AutoModelForCausalLM.from_pretrained(tmp_path / "causal-language")  # plain transformers: the base


@pytest.mark.parametrize("placement", ["serial", "parallel"])
def test_the_saved_model_writes_text(opener, tmp_path: Path, placement):
    model, batch = opener(), random_batch()
    technique = BottleneckAdapter(placement=placement)
    technique.edit(model)
    train_steps(model, technique, batch, steps=10)
    technique.finish(model).save(tmp_path / "saved")
    prompts = ["The film was", "A red cup stands near the"]
    answers = [generate(m, prompts, max_new_tokens=12) for m in (model, reopened(tmp_path / "saved"))]
    assert [a.text for a in answers[0]] == [a.text for a in answers[1]]
    ids = torch.tensor([model.tokenizer(prompts[0])["input_ids"]])
    with torch.no_grad():  # the cache gives what the whole text gives
        for _ in range(answers[0][0].tokens):
            ids = torch.cat([ids, model.pretrained(ids).logits[:, -1:].argmax(-1)], dim=1)
    written = ids[0, len(model.tokenizer(prompts[0])["input_ids"]) :]
    assert model.tokenizer.decode(written, skip_special_tokens=True) == answers[0][0].text


def test_a_copied_model_has_adapters_of_its_own(opener):
    model, batch = opener(), random_batch()
    BottleneckAdapter(placement="parallel").edit(model)
    twin = copy.deepcopy(model)
    for adapter in bottlenecks(model.pretrained).values():
        nn.init.normal_(adapter.up.weight)
    assert torch.equal(outputs(twin, batch), outputs(opener(), batch))
    assert not torch.equal(outputs(model, batch), outputs(twin, batch))


def test_the_parts_of_other_architectures():
    for config, kind in ((GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20, n_positions=16), GPT2LMHeadModel),):
        block = kind(config).transformer.h[0]
        assert sublayers(block, 8) == {"attention": ("attn.c_attn", "attn.c_proj"), "mlp": ("mlp.c_fc", "mlp.c_proj")}


def test_a_block_without_linear_layers_is_refused(opener):
    model = opener()
    for block in model.layers:
        block.mlp = nn.Identity()
    with pytest.raises(ModelError, match="mlp part"):
        BottleneckAdapter().edit(model)
    with pytest.raises(RecipeError, match="without an adapter"):
        model = opener()
        BottleneckAdapter().edit(model)
        BottleneckAdapter().edit(model)


def test_merging_is_refused_with_a_reason(tmp_path: Path):
    recipe = tiny_recipe(tmp_path).model_dump(mode="json")
    recipe["techniques"] = [{"use": "bottleneck", "merge": True}]
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    with pytest.raises(Exception, match="cannot be merged"):
        load_recipe(tmp_path / "recipe.yaml")


def test_files_that_do_not_fit_are_refused(opener, tmp_path: Path):
    model = opener()
    BottleneckAdapter().edit(model)
    model.save(tmp_path)
    path = tmp_path / "bottleneck" / "bottleneck.json"
    sound = json.loads(path.read_text())
    for change, words in (
        ({"width": 0}, "not sound"),
        ({"activation": "__import__"}, "not sound"),
        ({"extra": 1}, "not sound"),
        ({"width": 7}, "do not fit"),
        ({"spots": [{"entry": "model.norm", "exit": "model.norm"}]}, "not a linear layer"),
        ({"spots": [{"entry": "no.such", "exit": "no.such"}]}, "not a linear layer"),
    ):
        path.write_text(json.dumps({**sound, **change}))
        with pytest.raises(ModelError, match=words):
            reopened(tmp_path)
    path.write_text(json.dumps(sound))
    (tmp_path / "bottleneck" / "bottleneck.safetensors").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(ModelError, match="not sound safetensors"):
        reopened(tmp_path)
    (tmp_path / "bottleneck" / "bottleneck.safetensors").unlink()
    with pytest.raises(ModelError, match="missing"):
        reopened(tmp_path)


def test_proofs_do_not_hold_for_nothing(opener):
    model, technique = opener(), BottleneckAdapter()
    technique.edit(model)
    technique.begin(model, {})
    technique.finish(model)
    assert not technique.effect().passed


def test_only_the_adapter_gets_a_gradient(opener):
    model, batch = opener(), random_batch()
    BottleneckAdapter(placement="parallel").edit(model)
    forward_pass(model, batch).losses.cross_entropy.backward()
    for name, parameter in model.parameters_by_name().items():
        assert (parameter.grad is not None) == (".bottleneck." in name), name
        if ".up.weight" in name:
            assert torch.count_nonzero(parameter.grad) > 0


def test_training_lowers_the_loss(tmp_path: Path):
    section = {"steps": 30, "evaluate_every": 15, "lr": 1e-2}
    trained = train(tiny_recipe(tmp_path, techniques=[{"use": "bottleneck"}], train=section), tmp_path / "runs")
    losses = [value for (_, name), value in sorted(trained.metrics.items()) if name == "loss"]
    assert losses[-1] < 0.8 * losses[0]
