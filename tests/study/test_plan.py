"""Plans against counts, against known figures of the field, and against what really happens."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM

from uplift.core.recipe import Recipe
from uplift.learn.assemble import assemble, edit_model
from uplift.learn.optim import apply_groups, resolve_groups
from uplift.learn.parallel import Parallel
from uplift.model.backbone import look_at
from uplift.model.language_model import LanguageModel
from uplift.study import plan as planning
from uplift.study.machine import Machine
from uplift.study.plan import Probe, Tokens
from uplift.study.structure import Structure, examine
from uplift.testing.tiny import tiny_recipe, tiny_tokenizer

MACHINE = Machine("cpu", 2, 0.0, 2, 172e9, 0.1, 24 * 2**30, 20 * 2**30)


def smollm(techniques: list[dict] | None = None) -> Structure:
    """SmolLM2-135M's shape, without weights."""
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        pretrained = LlamaForCausalLM(config)
    model = LanguageModel(pretrained, tiny_tokenizer(), look_at(pretrained), kind="causal", head_kind="language")
    recipe = Recipe.model_validate({"model": "x", "data": {"train": "y"}, "techniques": techniques or []})
    return examine(model, recipe.techniques, trains=True)


def test_flops_of_full_fine_tuning_are_those_of_the_field() -> None:
    found = smollm()
    assert found.parameters == found.trainable == 134_515_008
    whole = Tokens(rows=100, mean=512, longest=512, learned=1.0, test_rows=0)
    assert planning.training_flops(found, whole) == pytest.approx(860e6, rel=0.02)
    half = Tokens(rows=100, mean=135, longest=400, learned=0.5, test_rows=0)
    assert planning.training_flops(found, half) == pytest.approx(737e6, rel=0.02)


def test_flops_of_lora_spare_the_frozen_weights() -> None:
    found = smollm([{"use": "lora", "rank": 16}])
    assert 0 < found.trainable < 0.06 * found.parameters and found.trained_layers == 30 and not found.head_trains
    whole = Tokens(rows=100, mean=512, longest=512, learned=1.0, test_rows=0)
    assert planning.training_flops(found, whole) == pytest.approx(620e6, rel=0.05)


def test_counts_equal_the_real_model(tmp_path: Path) -> None:
    for techniques in ([], [{"use": "lora", "rank": 4}]):
        recipe = tiny_recipe(tmp_path, techniques=techniques)
        foretold = planning.plan(recipe, tmp_path)
        real = assemble(recipe, tmp_path, Parallel(torch.device("cpu")))
        model = edit_model(real.model, real.techniques)
        trainable = apply_groups(model, resolve_groups(model, real.techniques))
        assert foretold.structure.trainable == sum(p.numel() for p in trainable.values())
        assert foretold.structure.parameters == sum(p.numel() for p in model.parameters_by_name().values())


def test_class_head_and_linear_probe_are_counted(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, task_options={"head": "classifier"}, techniques=[{"use": "linear_probe"}])
    foretold = planning.plan(recipe, tmp_path)
    assert foretold.structure.trainable == 2 * 32 and foretold.structure.trained_layers == 0
    assert foretold.training_flops_per_token < 1.2 * foretold.forward_flops_per_token


def test_tokens_steps_and_budgets(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, train={"steps": None, "epochs": 2.0, "batch_tokens": 256})
    foretold = planning.plan(recipe, tmp_path)
    real = assemble(recipe, tmp_path, Parallel(torch.device("cpu")))
    tokens = sum(len(real.encoder.encode(sample)) for sample in real.corpora["train"])
    assert foretold.training_tokens == pytest.approx(2 * tokens, rel=0.02)
    assert foretold.epochs == pytest.approx(2.0) and foretold.tokens.rows == len(real.corpora["train"])
    assert 0.7 < foretold.steps / math.ceil(2 * tokens / 256) < 1.4
    fixed = planning.plan(tiny_recipe(tmp_path, train={"steps": 7}), tmp_path)
    assert fixed.steps == 7
    short = planning.plan(tiny_recipe(tmp_path, train={"steps": None, "budget": {"tokens": 500}}), tmp_path)
    assert short.training_tokens == 500 and any("budget ends training" in line for line in short.problems)


def test_time_budget_bounds_the_time() -> None:
    recipe = Recipe.model_validate({"model": "x", "data": {"train": "y"}, "train": {"budget": {"seconds": 90.0}}})
    tokens = Tokens(rows=7000, mean=50, longest=120, learned=0.1, test_rows=600)
    foretold = planning.foretell(recipe, smollm(), tokens, MACHINE)
    assert foretold.seconds == pytest.approx(90, rel=0.01) and foretold.epochs < 1
    assert foretold.as_predicted().seconds == foretold.seconds and foretold.as_predicted().disk_bytes == foretold.disk_bytes


def test_frozen_layers_cost_once(tmp_path: Path) -> None:
    options = {"task_options": {"head": "classifier"}, "techniques": [{"use": "linear_probe"}]}
    long = {"steps": None, "epochs": 10.0}
    cached = planning.plan(tiny_recipe(tmp_path, train=long, **options), tmp_path)
    plain = planning.plan(tiny_recipe(tmp_path, train=long, hardware={"prefix_cache": False}, **options), tmp_path)
    assert cached.training_tokens == plain.training_tokens and cached.seconds < plain.seconds
    pace = planning.Pace(first=2.0, again=0.5, epoch=100)
    assert pace.seconds(50) == 100 and pace.seconds(300) == 300 and pace.tokens(300) == 300 and pace.tokens(100) == 50


def test_memory_follows_what_trains() -> None:
    recipe = Recipe.model_validate({"model": "x", "data": {"train": "y"}, "train": {"batch_tokens": 1024}})
    tokens = Tokens(rows=1000, mean=135, longest=400, learned=0.5, test_rows=0)
    full, lora = (planning.memory_of(recipe, found, tokens, "cpu") for found in (smollm(), smollm([{"use": "lora"}])))
    assert full.weights == full.gradients == full.optimizer / 2 == 134_515_008 * 4
    assert lora.optimizer < 0.06 * full.optimizer and lora.total < 0.65 * full.total
    assert 3.0 < full.total / 2**30 < 5.5, "measured: 3.9 GiB"


def test_a_probe_replaces_the_assumed_speed() -> None:
    recipe = Recipe.model_validate({"model": "x", "data": {"train": "y"}})
    tokens = Tokens(rows=1000, mean=100, longest=200, learned=0.5, test_rows=100)
    guessed = planning.foretell(recipe, smollm(), tokens, MACHINE)
    probed = planning.foretell(recipe, smollm(), tokens, MACHINE, Probe(0.01, 3 * 2**30))
    assert not guessed.calibrated and probed.calibrated
    assert probed.seconds == pytest.approx(1000, rel=0.05) and probed.peak_memory_bytes == 3 * 2**30
    assert "measured on real steps" in probed.assumptions[0]


def test_extra_passes_cost_what_techniques_declare() -> None:
    plain = Recipe.model_validate({"model": "x", "data": {"train": "y"}})
    attacked = Recipe.model_validate({"model": "x", "data": {"train": "y"}, "techniques": [{"use": "fgm"}]})
    assert planning.step_cost(plain) == (1, 1.0)
    passes, multiplier = planning.step_cost(attacked)
    assert passes == 2 and multiplier > 1.5


def test_too_little_memory_is_said_and_everything_prints_and_dumps() -> None:
    recipe = Recipe.model_validate({"model": "x", "data": {"train": "y"}})
    tokens = Tokens(rows=1000, mean=100, longest=200, learned=0.5, test_rows=100)
    small = Machine("cpu", 2, 1.0, 1, 80e9, 0.1, 2**30, 2**30)
    foretold = planning.foretell(recipe, smollm(), tokens, small)
    assert any("GiB of memory" in line for line in foretold.problems)
    assert any("other work" in line for line in foretold.assumptions)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(foretold)
    text = console.export_text()
    assert "134,515,008" in text and "problem:" in text
    dumped = foretold.model_dump(mode="json")
    assert dumped["flops"] == pytest.approx(foretold.flops) and dumped["structure"]["layers"] == 30


def test_a_recipe_that_trains_nothing_costs_only_evaluation(tmp_path: Path) -> None:
    foretold = planning.plan(tiny_recipe(tmp_path, train={"steps": 0}), tmp_path)
    assert foretold.steps == 0 and foretold.training_tokens == 0 and foretold.structure.trainable == 0
    assert foretold.evaluation_seconds > 0
