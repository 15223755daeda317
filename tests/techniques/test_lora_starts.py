"""How adapters start, and that a start taken out of the base comes back: numbers, proofs, saved files."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import EvaConfig, PeftModel, get_eva_state_dict
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from uplift.core.errors import DataError, RecipeError
from uplift.core.legality import clashes_of
from uplift.core.values import Batch, Corpus, Message, Origin, Sample
from uplift.learn.optim import AUTO_LR, apply_groups, peak_lr, resolve_groups
from uplift.model.language_model import LanguageModel
from uplift.model.quiet import quiet
from uplift.study.structure import examine, hollow_model
from uplift.techniques.adapt.lora import SHARP_LR, Lora, merged_weight
from uplift.techniques.lora_init import (
    MUTATING,
    factors_of,
    lora_layers,
    mean_gradients,
    principal_directions,
    share_out,
    start_from_gradient,
    start_from_inputs,
    training_rows,
)
from uplift.testing.contract import Case, check_accumulation, check_effect, check_resume
from uplift.testing.passes import forward_pass, open_tiny, outputs, random_batch, train_steps
from uplift.testing.tiny import tiny_recipe, tiny_tokenizer

INITS = ("kaiming", "gaussian", "pissa", "olora", "orthogonal", "eva", "lora_ga")
EXACT = ("kaiming", "gaussian", "eva")
"""B is zero: the model starts unchanged bit for bit."""
ADAPTER = "default"


def corpus(size: int = 40) -> Corpus:
    def sample(index: int) -> Sample:
        words = " ".join(f"the {w} cup {index * 7 % 31}" for w in ("red", "old", "cold")[: 1 + index % 3])
        turns = (Message("user", f"What is {words}?"), Message("assistant", f"It is {words}.", learn=True))
        return Sample(id=f"s{index}", origin=Origin("rows", index + 1), messages=turns)

    return Corpus([sample(index) for index in range(size)], "train")


def adapted(model: LanguageModel, **options: Any) -> Lora:
    """A technique that has edited ``model``."""
    technique = Lora(**{"rank": 4, **options})
    technique.samples(corpus())
    torch.manual_seed(3)
    technique.edit(model)
    return technique


# -- what the model is at the start ------------------------------------------------------------------------------------
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("rslora", [False, True])
def test_the_model_is_unchanged_at_the_start(opener, init: str, dora: bool, rslora: bool) -> None:
    model, batch = opener(), random_batch()
    before = outputs(model, batch)
    adapted(model, init=init, dora=dora, rslora=rslora)
    apart = (outputs(model, batch) - before).abs().max()
    if init in EXACT and not dora:
        assert apart == 0
    else:
        assert apart < 5e-6  # rounding of the sum W' + s B A, and of the division by the row's length


@pytest.mark.parametrize("init", INITS)
def test_without_the_adapter_only_a_mutating_start_is_not_the_original(opener, init: str) -> None:
    model, batch = opener(), random_batch()
    before = outputs(model, batch)
    technique = adapted(model, init=init)
    with model.peft.disable_adapter():
        apart = (outputs(model, batch) - before).abs().max()
    assert technique.mutates_base == (init in MUTATING) == ("base_weights" in technique.declare().mutates)
    assert apart > 1e-3 if technique.mutates_base else apart == 0


@pytest.mark.parametrize("init", EXACT)
@pytest.mark.parametrize("dora", [False, True])
def test_at_the_first_step_a_has_no_gradient(opener, init: str, dora: bool) -> None:
    model, batch = opener(), random_batch()
    adapted(model, init=init, dora=dora)
    forward_pass(model, batch).losses.cross_entropy.backward()
    for name, layer in lora_layers(model.pretrained).items():
        assert torch.count_nonzero(layer.lora_A[ADAPTER].weight.grad) == 0, name
        assert torch.count_nonzero(layer.lora_B[ADAPTER].weight.grad) > 0, name
    assert all(p.grad is None for n, p in model.parameters_by_name().items() if "lora_" not in n)


def test_pissa_takes_the_strongest_directions(opener) -> None:
    plain, model = opener(), opener()
    adapted(model, init="pissa", rank=4)
    weight = plain.parameters_by_name()["model.layers.0.mlp.up_proj.weight"].detach()
    layer = lora_layers(model.pretrained)["model.layers.0.mlp.up_proj"]
    taken = layer.scaling[ADAPTER] * layer.lora_B[ADAPTER].weight @ layer.lora_A[ADAPTER].weight
    strongest = torch.linalg.svdvals(weight)[:4]
    assert torch.allclose(torch.linalg.svdvals(taken)[:4], strongest, rtol=0.02)
    assert torch.allclose(weight - taken, layer.get_base_layer().weight, atol=1e-7)


@pytest.mark.parametrize("init", ["pissa", "olora", "lora_ga"])
def test_a_rank_that_a_start_cannot_have_is_refused(opener, init: str) -> None:
    with pytest.raises(RecipeError, match="too large"):
        adapted(opener(), init=init, rank=64)


# -- after training ----------------------------------------------------------------------------------------------------
def plain_logits(folder: Path, adapter: Path, batch: Batch) -> torch.Tensor:
    """Logits of plain transformers and PEFT from the original base and a saved adapter."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), adapter).eval()
    with torch.no_grad():
        return torch.cat([model(input_ids=row).logits for row in batch.ids.split(batch.lengths, dim=1)], dim=1)


@pytest.mark.parametrize(
    "options",
    [
        *({"init": init} for init in INITS),
        {"init": "pissa", "rslora": True, "rank_pattern": {"q_proj": 6}, "alpha_pattern": {"down_proj": 5.0}},
        {"init": "lora_ga", "dora": True, "rank_pattern": {r"layers\.1\..*": 2}},
        {"init": "olora", "dora": True},
        {"dora": True, "rslora": True},
        {"rank_pattern": {"q_proj": 6}, "alpha_pattern": {"q_proj": 5.0}},
        {"train_a": False},
        {"init": "eva", "dora": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("merge", [True, False])
def test_the_result_is_what_was_trained_and_plain_peft_has_it_over_the_original_base(
    opener, model_folders, tmp_path: Path, options: dict[str, Any], merge: bool
) -> None:
    model, batch = opener(), random_batch()
    original = {name: p.detach().clone() for name, p in model.parameters_by_name().items()}
    technique = adapted(model, merge=merge, **options)
    apply_groups(model, resolve_groups(model, [technique]))
    train_steps(model, technique, batch)
    trained = outputs(model, batch)
    finished = technique.finish(model)
    assert technique.effect().passed, technique.effect()
    assert (outputs(finished, batch) - trained).abs().max() < 1e-5
    assert (outputs(opener(), batch) - trained).abs().max() > 1e-3
    if merge:
        (tmp_path / "adapter").mkdir()
        finished.merged_adapter.save(tmp_path / "adapter")
    else:
        finished.save(tmp_path)
        with quiet():
            reopened = open_tiny(tmp_path)
        assert (outputs(reopened, batch) - trained).abs().max() < 1e-5
        base = {n.replace(".base_layer.", "."): p for n, p in finished.parameters_by_name().items() if "lora_" not in n}
        assert all(torch.allclose(base[name], tensor, atol=1e-7) for name, tensor in original.items())
        if not technique.mutates_base:
            assert all(torch.equal(base[name], tensor) for name, tensor in original.items())
    assert (plain_logits(model_folders["causal"], tmp_path / "adapter", batch) - trained).abs().max() < 1e-5


def test_an_unmerged_adapter_reloads_to_the_same_bits(opener, model_folders, tmp_path: Path) -> None:
    model, batch = opener(), random_batch()
    technique = adapted(model, merge=False)
    train_steps(model, technique, batch)
    technique.finish(model)
    model.save(tmp_path)
    again = opener()
    again.peft = PeftModel.from_pretrained(again.pretrained, str(tmp_path / "adapter"))
    assert torch.equal(outputs(again, batch), outputs(model, batch))


@pytest.mark.parametrize("init", ["pissa", "orthogonal", "lora_ga"])
def test_an_adapter_that_did_not_train_fails_the_proof(opener, init: str) -> None:
    model = opener()
    technique = adapted(model, init=init)
    technique.begin(model, {})
    technique.finish(model)
    assert technique.effect().value == 0 and not technique.effect().passed


def test_dora_merges_rows_of_the_trained_length() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, update = (torch.randn(5, 7, generator=generator) for _ in range(2))
    magnitude = torch.rand(5, generator=generator) + 1
    merged = merged_weight(weight, update, magnitude)
    assert torch.allclose(merged.norm(dim=1), magnitude)
    assert torch.allclose(torch.nn.functional.cosine_similarity(merged, weight + update), torch.ones(5))


# -- EVA ---------------------------------------------------------------------------------------------------------------
def test_principal_directions_are_those_of_the_centred_inputs() -> None:
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(0)) * torch.linspace(4, 0.5, 12) + 3
    directions, shares = principal_directions(x, 3)
    _, s, vh = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    assert torch.allclose((directions * vh[:3]).sum(1).abs(), torch.ones(3), atol=1e-4)
    assert torch.allclose(shares, (s.square() / s.square().sum())[:3], atol=1e-5)


def test_ranks_go_where_the_variance_is() -> None:
    shares = {"a": torch.tensor([0.9, 0.05]), "b": torch.tensor([0.4, 0.3]), "c": torch.tensor([0.02, 0.01])}
    assert share_out(shares, 3) == {"a": 1, "b": 2, "c": 0}


def test_eva_agrees_with_peft_on_one_row(opener) -> None:
    model, reference = opener(), opener()
    rows = training_rows(model, corpus(), 600)[:1]
    Lora(rank=3).edit(model)
    Lora(rank=3, init="gaussian").edit(reference)
    for each in (model, reference):
        config: Any = each.peft.peft_config[ADAPTER]
        config.init_lora_weights, config.eva_config = "eva", EvaConfig(rho=2.0)
    start_from_inputs(model, rows)

    def forward(peft: PeftModel, row: dict[str, torch.Tensor]) -> None:
        reference.hidden(reference.embed(row["ids"]), row["positions"], rows[0].lengths)

    loader = [{"ids": rows[0].ids, "positions": rows[0].positions}]
    with quiet():
        expected = get_eva_state_dict(
            reference.peft,
            loader,
            forward_fn=forward,
            prepare_model_inputs_fn=None,
            prepare_layer_inputs_fn=None,
            show_progress_bar=False,
        )
    layers = lora_layers(model.pretrained)
    found = {f"base_model.model.{name}": layer.lora_A[ADAPTER].weight for name, layer in layers.items()}
    assert {name for name, a in expected.items() if len(a)} == set(found)
    for name, a in found.items():
        assert len(a) == len(expected[name]), name
        cosine = torch.nn.functional.cosine_similarity(a, expected[name]).abs()
        assert (cosine > 0.99).all(), (name, cosine)


def test_eva_spends_the_budget_and_starts_unchanged(opener) -> None:
    model = opener()
    adapted(model, init="eva", rank=4)
    layers = lora_layers(model.pretrained)
    ranks = [layer.r[ADAPTER] for layer in layers.values()]
    assert sum(ranks) == 14 * 4 and max(ranks) <= 8 and len(set(ranks)) > 1
    assert all(layer.scaling[ADAPTER] == pytest.approx(16 / 4) for layer in layers.values())
    for layer in layers.values():
        a = layer.lora_A[ADAPTER].weight
        assert torch.allclose(a @ a.T, torch.eye(len(a)), atol=1e-4)


# -- LoRA-GA -----------------------------------------------------------------------------------------------------------
def test_the_gradients_are_those_of_full_training(opener) -> None:
    model, full = opener(), opener()
    rows = training_rows(model, corpus(), 3000)
    assert len(rows) > 1
    adapted(model)
    weights = {name: layer.get_base_layer().weight for name, layer in lora_layers(model.pretrained).items()}
    found = mean_gradients(model, rows, weights)
    passes = [forward_pass(full, row) for row in rows]
    (sum(p.losses.cross_entropy for p in passes) / sum(p.count for p in passes)).backward()
    for name, gradient in found.items():
        expected = full.pretrained.get_submodule(name).weight.grad
        assert torch.allclose(gradient, expected, atol=1e-6), name
    assert not any(weight.requires_grad for weight in weights.values())


def test_lora_ga_spans_the_gradient(opener) -> None:
    model = opener()
    technique = adapted(model)
    rows = training_rows(model, corpus(), 600)
    layers = lora_layers(model.pretrained)
    name = "model.layers.1.mlp.down_proj"
    gradient = mean_gradients(model, rows, {name: layers[name].get_base_layer().weight})[name]
    start_from_gradient(model, rows)
    u, _, vh = torch.linalg.svd(gradient)
    a, b = factors_of(model.pretrained)[name]
    assert technique.rank == len(a)
    assert torch.allclose(a @ vh[:4].T @ vh[:4], a, atol=1e-3)  # A: the first r right directions
    assert torch.allclose(u[:, 4:8] @ u[:, 4:8].T @ b, b, atol=1e-2 * float(b.abs().max()))  # B: the next r left ones


def test_rows_to_look_at_are_of_the_asked_size(opener) -> None:
    model = opener()
    rows = training_rows(model, corpus(), 200)
    assert 200 <= sum(sum(row.lengths) for row in rows) < 400
    torch.manual_seed(1)
    first = training_rows(model, corpus(), 200)[0].sample_ids
    torch.manual_seed(1)
    assert training_rows(model, corpus(), 200)[0].sample_ids == first
    with pytest.raises(DataError, match="no training tokens"):
        training_rows(model, Corpus([], "train"), 200)


# -- options -----------------------------------------------------------------------------------------------------------
def test_patterns_set_rank_and_scale_and_the_count_follows(opener) -> None:
    model = opener()
    adapted(model, rank=4, rank_pattern={"q_proj": 6, r"layers\.1\.mlp\..*": 2}, alpha_pattern={"v_proj": 3.0})
    layers = lora_layers(model.pretrained)
    assert layers["model.layers.0.self_attn.q_proj"].r[ADAPTER] == 6
    assert layers["model.layers.1.mlp.up_proj"].r[ADAPTER] == 2 and layers["model.layers.0.mlp.up_proj"].r[ADAPTER] == 4
    assert layers["model.layers.0.self_attn.v_proj"].scaling[ADAPTER] == 3 / 4
    trained = sum(p.numel() for p in model.parameters_by_name().values() if p.requires_grad)
    assert trained == sum(x.r[ADAPTER] * (x.in_features + x.out_features) for x in layers.values())


@pytest.mark.parametrize("options", [{"rank_pattern": {"no_such": 2}}, {"alpha_pattern": {"proj": 2.0}}])
def test_a_pattern_that_names_nothing_is_refused(opener, options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="matches no adapted layer"):
        adapted(opener(), **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"init": "orthogonal", "rank": 3}, "even"),
        ({"init": "orthogonal", "rank_pattern": {"q_proj": 5}}, "even"),
        ({"train_a": False, "plus_ratio": 16.0}, "no A"),
        ({"rank_pattern": {"(": 5}}, "regular expression"),
        ({"rank_pattern": {"q_proj": 0}}, "greater than or equal"),
        ({"init": "corda"}, "Input should be"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Lora(**options)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_heads_and_embeddings_are_refused(opener, target: str) -> None:
    with pytest.raises(RecipeError, match="cannot be adapted|matches no linear"):
        adapted(opener(), targets=["q_proj", target])


def test_data_driven_starts_need_rows(opener) -> None:
    with pytest.raises(RecipeError, match="training rows"):
        Lora(init="eva").edit(opener())


def test_dora_trains_one_length_per_row(opener) -> None:
    model = opener()
    adapted(model, dora=True, rank=4)
    layers = lora_layers(model.pretrained).values()
    trained = sum(p.numel() for p in model.parameters_by_name().values() if p.requires_grad)
    assert trained == sum(4 * (x.in_features + x.out_features) + x.out_features for x in layers)


def test_lora_plus_gives_b_its_rate(opener) -> None:
    model = opener()
    technique = adapted(model, plus_ratio=16.0)
    settings = resolve_groups(model, [technique])
    rates = {part: {s.lr_multiplier for n, s in settings.items() if f".{part}." in n} for part in ("lora_A", "lora_B")}
    assert rates == {"lora_A": {1.0}, "lora_B": {16.0}}
    assert adapted(opener()).groups(model) == []


def test_a_frozen_a_neither_trains_nor_moves(opener) -> None:
    model, batch = opener(), random_batch()
    technique = adapted(model, train_a=False)
    assert not any(".lora_A." in name for name in apply_groups(model, resolve_groups(model, [technique])))
    before = factors_of(model.pretrained)
    train_steps(model, technique, batch)
    after = factors_of(model.pretrained)
    assert all(
        torch.equal(before[name][0], after[name][0]) and not torch.equal(before[name][1], after[name][1]) for name in after
    )
    with torch.no_grad():
        next(iter(lora_layers(model.pretrained).values())).lora_A[ADAPTER].weight[0, 0] += 1e-6
    technique.finish(model)
    assert not technique.effect().passed and "lora_A" in technique.effect().detail


def test_rates_of_their_own(opener) -> None:
    for init in INITS:
        model = opener()
        technique = adapted(model, init=init)
        trainable = {name: p for name, p in model.parameters_by_name().items() if p.requires_grad}
        expected = SHARP_LR if init in {"pissa", "olora"} else AUTO_LR["adapter"]
        assert peak_lr("auto", model, trainable, [technique]) == expected
        assert peak_lr(0.5, model, trainable, [technique]) == 0.5


def test_dropout_is_declared(tmp_path: Path) -> None:
    assert "dropout" in Lora(dropout=0.1).declare().gives and "dropout" not in Lora().declare().gives
    recipe = tiny_recipe(tmp_path, techniques=[Lora(init="pissa", dropout=0.1)])
    assert not clashes_of(recipe)


@pytest.mark.parametrize("options", [{}, {"dora": True}, {"init": "pissa"}, {"init": "eva"}, {"init": "lora_ga"}], ids=str)
def test_weights_that_are_kept_transposed(tmp_path: Path, options: dict[str, Any]) -> None:
    tokenizer = tiny_tokenizer()
    sizes: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.2}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes, **ends)).save_pretrained(tmp_path / "gpt")
    tokenizer.save_pretrained(tmp_path / "gpt")
    model, batch = open_tiny(tmp_path / "gpt"), random_batch()
    before = outputs(model, batch)
    technique = adapted(model, **options)
    assert (outputs(model, batch) - before).abs().max() < 1e-5
    train_steps(model, technique, batch)
    trained = outputs(model, batch)
    finished = technique.finish(model)
    assert technique.effect().passed and (outputs(finished, batch) - trained).abs().max() < 1e-5
    (tmp_path / "adapter").mkdir()
    finished.merged_adapter.save(tmp_path / "adapter")
    assert (plain_logits(tmp_path / "gpt", tmp_path / "adapter", batch) - trained).abs().max() < 1e-5
    with pytest.raises(RecipeError, match="transposed"):
        adapted(open_tiny(tmp_path / "gpt"), init="olora")


@pytest.mark.parametrize("init", INITS)
def test_a_plan_counts_every_start_without_weights(tmp_path: Path, init: str) -> None:
    recipe = tiny_recipe(tmp_path, techniques=[Lora(init=init, rank=4)])
    hollow = hollow_model(recipe, Path(), ("negative", "positive"))
    counted = examine(hollow, recipe.techniques, trains=True).trainable
    assert counted == sum(4 * (x.in_features + x.out_features) for x in lora_layers(hollow.pretrained).values()) > 0


# -- the contract, for every way to start ------------------------------------------------------------------------------
VARIANTS = [
    {"init": "pissa"},
    {"init": "lora_ga"},
    {"init": "eva", "merge": False},
    {"init": "orthogonal", "train_a": False},
    {"dora": True, "plus_ratio": 4.0},
    {"rslora": True, "init": "olora", "merge": False},
]


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_the_contract_holds(settings: dict[str, Any], tmp_path: Path) -> None:
    case = Case(Lora, tmp_path, settings=settings)
    check_effect(case)
    check_accumulation(case)
    check_resume(case)


def test_scale_of_patterns_under_rslora(opener) -> None:
    model = opener()
    adapted(model, rslora=True, rank_pattern={"q_proj": 6})
    for name, layer in lora_layers(model.pretrained).items():
        rank = 6 if re.search("q_proj$", name) else 4
        assert layer.scaling[ADAPTER] == 16 / math.sqrt(rank)


def test_eva_with_a_class_head(opener) -> None:
    model = opener("encoder", "class")
    technique = Lora(init="eva", rank=4)
    samples = [Sample(id=f"t{i}", origin=Origin("rows", i), text=f"a red cup {i}", label=i % 2) for i in range(30)]
    technique.samples(Corpus(samples, "train"))
    technique.edit(model)
    train_steps(model, technique, random_batch())
    technique.finish(model)
    assert technique.effect().passed
