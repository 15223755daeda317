"""Techniques that say which part of a model trains: what they leave alone stays bit-equal, and what they choose is exact."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from uplift.core.errors import RecipeError
from uplift.core.legality import clashes_of
from uplift.core.storage import commit_directory
from uplift.data.sampling import spread
from uplift.learn.assemble import finish_model
from uplift.learn.engine import Engine
from uplift.learn.optim import apply_groups, resolve_groups
from uplift.study.structure import examine, hollow_model
from uplift.techniques.adapt.lora import Lora
from uplift.techniques.layers.bitfit import Bitfit
from uplift.techniques.layers.block_expansion import BlockExpansion, output_projections, sources
from uplift.techniques.layers.freeze import Freeze
from uplift.techniques.layers.gradual_unfreezing import GradualUnfreezing, stages_due
from uplift.techniques.layers.lisa import Lisa, drawn_blocks
from uplift.techniques.layers.lp_ft import LpFt
from uplift.techniques.layers.norm_tuning import NormTuning
from uplift.techniques.layers.spectrum import Spectrum, marchenko_pastur_median, noise_bound, signal_to_noise, top_share
from uplift.techniques.layers.surgical import Surgical, step_down
from uplift.testing.passes import forward_pass, open_tiny, outputs, random_batch
from uplift.testing.tiny import tiny_causal, tiny_recipe, tiny_tokenizer
from uplift.testing.training import differences, open_run, start_engine, train, train_in_two_parts

DECAY = {"optimizer": {"weight_decay": 0.5}}
CHOOSING = [Bitfit(), NormTuning(), Spectrum(), Surgical(), BlockExpansion(), Lisa(), GradualUnfreezing()]


def recipe_with(directory: Path, *techniques: Any, layers: int = 4, head: str = "words", **training: Any) -> Any:
    """A tiny recipe on a Llama with biases in its attention."""
    if not (directory / "model").exists():
        tiny_causal(directory / "model", num_hidden_layers=layers, attention_bias=True)
    section = {"steps": 8, "lr": 3e-3, "evaluate_every": 100, "save_every": 100} | DECAY | training
    return tiny_recipe(directory, techniques=list(techniques), task_options={"head": head}, train=section)


@contextmanager
def engine_with(directory: Path, *techniques: Any, **options: Any) -> Iterator[Engine]:
    recipe = recipe_with(directory, *techniques, **options)
    with open_run(recipe, directory / "engine") as folder:
        yield start_engine(recipe, folder)[1]


def snapshot(engine: Engine) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in engine.learner.model.parameters_by_name().items()}


def by_step(engine: Engine, look: Any) -> list[Any]:
    """``look()`` before the first step and after every step."""
    found = [look()]
    engine.report = lambda progress, metrics: found.append(look())
    engine.train()
    return found


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


# -- what all of them promise ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("technique", CHOOSING, ids=lambda technique: technique.use)
def test_what_is_not_chosen_is_bit_equal_under_weight_decay(technique: Any, tmp_path: Path) -> None:
    with engine_with(tmp_path, technique) as engine:
        steps = by_step(engine, lambda: (snapshot(engine), set(engine.parameters), set(engine.optimizer.state)))
        expected = set[str]().union(*(trained for _, trained, _ in steps[:-1]))
        for (before, trained, _), (after, _, _) in zip(steps, steps[1:], strict=False):
            assert moved(before, after) <= trained, "at every step, nothing moves but what trains"
            expected -= moved(before, after)
        assert not expected, "and all of that does"
        held = {p for group in engine.optimizer.param_groups for p in group["params"]}
        assert held == set(engine.parameters.values()), "the optimizer knows nothing else"
        assert set(engine.optimizer.state) <= held, "and remembers nothing else"
        assert {p for p in engine.learner.model.parameters() if p.requires_grad} == held


@pytest.mark.parametrize(
    ("technique", "head"),
    [(Lisa(every=3), "words"), (GradualUnfreezing(until=0.6), "words"), (LpFt(share=0.4), "classifier")],
    ids=["lisa", "gradual_unfreezing", "lp_ft"],
)
def test_a_restart_beside_a_change_is_bit_identical(technique: Any, head: str, tmp_path: Path) -> None:
    recipe = recipe_with(tmp_path, technique, save_every=1, schedule={"use": "constant"}, head=head)
    whole = train(recipe, tmp_path / "whole")
    for cut in (2, 3, 5):
        again = train_in_two_parts(recipe, tmp_path / f"cut-{cut}", cut + 1)
        assert not differences(whole, again), f"cut after step {cut}"
        assert whole.techniques[0].effect() == again.techniques[0].effect()


def test_a_plan_needs_no_weights(tmp_path: Path) -> None:
    recipe = recipe_with(tmp_path)
    plain = examine(hollow_model(recipe, tmp_path, ()), [], trains=True)
    for technique in CHOOSING:
        found = examine(hollow_model(recipe, tmp_path, ()), [technique], trains=True)
        assert 0 < found.trainable < plain.trainable, technique.use
        assert found.layers == plain.layers + (technique.use == "block_expansion")


@pytest.mark.parametrize(
    ("techniques", "words"),
    [
        (["bitfit", "norm_tuning"], "already owns the choice of what trains"),
        (["lisa", "gradual_unfreezing"], "already owns the choice of what trains"),
        (["linear_probe", "spectrum"], "already owns the choice of what trains"),
        (["lora", "surgical"], "an adapter freezes all of the model"),
        (["lora", "block_expansion"], "an adapter would freeze the new blocks"),
        (["freeze", "lisa"], "both decide which blocks train"),
        (["layerwise_lr", "lp_ft"], "at one rate"),
    ],
)
def test_contradictions_are_refused_in_words(techniques: list[str], words: str, tmp_path: Path) -> None:
    found = clashes_of(recipe_with(tmp_path, *techniques))
    assert any(words in clash.why for clash in found), found
    assert all(clash.fix for clash in found)
    if "surgical" in techniques:
        assert any("lora.layers" in clash.fix for clash in found)


# -- tied embeddings ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("technique", [Freeze(embeddings=True), Freeze(names=["*embed_tokens*"]), NormTuning(), Spectrum()])
def test_a_tied_table_frozen_as_embedding_is_frozen_as_head(technique: Any, tmp_path: Path) -> None:
    with engine_with(tmp_path, technique) as engine:
        model = engine.learner.model
        assert model.head_weight is model.pretrained.get_input_embeddings().weight
        before = model.head_weight.detach().clone()
        engine.train()
        assert not model.head_weight.requires_grad and model.head_weight.grad is None
        assert torch.equal(before, model.head_weight)
    with pytest.raises(RecipeError, match="no parameter matches"):
        Freeze(names=["lm_head*"]).groups(model)


# -- biases and norms --------------------------------------------------------------------------------------------------
def test_bitfit_refuses_a_model_without_biases_and_names_the_analogue(opener: Any) -> None:
    for head in ("language", "class"):
        with pytest.raises(RecipeError, match="no biases") as caught:
            Bitfit().groups(opener(head=head))
        assert "norm_tuning" in caught.value.fix


def test_bitfit_trains_the_biases_and_the_head(opener: Any) -> None:
    model = opener("encoder", "class")
    trainable = apply_groups(model, resolve_groups(model, [Bitfit()]))
    assert {name for name in trainable if not name.endswith(".bias")} == {"classifier.weight"}
    assert {name for name in model.parameters_by_name() if name.endswith(".bias")} <= set(trainable)


@pytest.mark.parametrize(("kind", "head"), [("causal", "language"), ("causal", "class"), ("encoder", "class")])
def test_norm_tuning_trains_the_norms_and_the_head(opener: Any, kind: str, head: str) -> None:
    model = opener(kind, head)
    trainable = apply_groups(model, resolve_groups(model, [NormTuning()]))
    new = {name for name in trainable if name.startswith(("score", "classifier"))}
    assert bool(new) == (head == "class")
    assert {name for name in trainable if "norm" in name.lower()} == set(trainable) - new
    assert len(trainable) - len(new) == (5 if kind == "causal" else 10)


def test_biases_learn_at_a_higher_default_rate(tmp_path: Path) -> None:
    with engine_with(tmp_path, Bitfit(), lr="auto") as engine:
        assert engine.lr == 1e-3


# -- gradual unfreezing ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fraction", "until", "expected"),
    [(0.0, 0.5, 1), (0.1249, 0.5, 1), (0.125, 0.5, 2), (0.3, 0.5, 3), (0.5, 0.5, 5), (1.0, 0.5, 5), (0.0, 0.0, 5)],
)
def test_stages_come_at_even_distances(fraction: float, until: float, expected: int) -> None:
    assert stages_due(fraction, until, 5) == expected


def test_blocks_join_from_the_top_and_keep_their_moments(tmp_path: Path) -> None:
    with engine_with(tmp_path, GradualUnfreezing(until=0.5), schedule={"use": "constant"}) as engine:
        model = engine.learner.model

        def look() -> tuple[int, dict[str, int]]:
            state = engine.optimizer.state
            updates = {name: int(state[p]["step"]) for name, p in engine.parameters.items() if p in state}
            return min(model.depth(name) for name in engine.parameters), updates

        steps = by_step(engine, look)
        assert [lowest for lowest, _ in steps] == [4, 3, 2, 1, 0, 0, 0, 0, 0], "8 steps: one more after each, until the 4th"
        last = steps[-1][1]
        assert {updates for name, updates in last.items() if model.depth(name) >= 4} == {8}, "moments are kept from step 1 on"
        assert {updates for name, updates in last.items() if model.depth(name) == 0} == {4}
        assert len(engine.run.events("regrouped")) == 4
        finish_model(model, list(engine.techniques))
        effect = engine.techniques[0].effect()
        assert effect.passed and effect.value == 1.0 and "embeddings at step 4" in effect.detail


def test_unfreezing_stops_where_it_is_told(tmp_path: Path) -> None:
    with engine_with(tmp_path, GradualUnfreezing(down_to=3)) as engine:
        engine.train()
        assert {engine.learner.model.depth(name) for name in engine.parameters} == {3, 4, 5}
        with pytest.raises(RecipeError, match="4 blocks"):
            GradualUnfreezing(down_to=5).groups(engine.learner.model)


def test_a_drift_before_the_turn_fails_the_proof(tmp_path: Path) -> None:
    with engine_with(tmp_path, GradualUnfreezing(until=0.5)) as engine:
        with torch.no_grad():
            engine.learner.model.parameters_by_name()["model.layers.0.mlp.up_proj.weight"][0, 0] += 1e-7
        engine.train()
        finish_model(engine.learner.model, list(engine.techniques))
        assert not engine.techniques[0].effect().passed


@pytest.mark.parametrize(("technique", "head"), [(GradualUnfreezing(), "words"), (LpFt(rate=0.5), "classifier")])
def test_only_adapters_take_turns_under_lora(technique: Any, head: str, tmp_path: Path) -> None:
    with engine_with(tmp_path, Lora(), technique, head=head) as engine:
        model = engine.learner.model
        trained = by_step(engine, lambda: set(engine.parameters))
        assert trained[0] < trained[-1]
        adapters = {name for name in model.parameters_by_name() if "lora_" in name}
        assert adapters <= trained[-1] and all("lora_" in name or "score" in name for name in trained[-1])
        finish_model(model, list(engine.techniques))
        assert all(each.effect().passed for each in engine.techniques)


# -- head first --------------------------------------------------------------------------------------------------------
def test_the_head_learns_alone_and_then_everything_at_the_lower_rate(tmp_path: Path) -> None:
    with engine_with(tmp_path, LpFt(share=0.5, rate=0.1), head="classifier", schedule={"use": "constant"}) as engine:
        start = snapshot(engine)
        steps = by_step(engine, lambda: (snapshot(engine), {g["lr"] for g in engine.optimizer.param_groups}))
        assert moved(start, steps[4][0]) == {"score.weight"}
        assert moved(steps[4][0], steps[5][0]) == set(start)
        assert steps[3][1] == {3e-3} and all(rate == pytest.approx(3e-4) for rate in steps[-1][1])
        head = engine.parameters["score.weight"]
        assert int(engine.optimizer.state[head]["step"]) == 8, "the head's moments go on"


def test_a_language_head_is_refused_with_the_reason(opener: Any, tmp_path: Path) -> None:
    assert any("tied" in clash.why for clash in clashes_of(recipe_with(tmp_path, "lp_ft"), "words"))
    assert not clashes_of(recipe_with(tmp_path, "lp_ft", head="classifier"), "classifier")
    with pytest.raises(RecipeError, match="classification head") as caught:
        LpFt().groups(opener())
    assert "tied" in caught.value.why


# -- LISA --------------------------------------------------------------------------------------------------------------
def test_every_block_is_drawn_equally_often() -> None:
    turns, layers, blocks = 6000, 12, 3
    draws = [drawn_blocks(7, turn, layers, blocks) for turn in range(turns)]
    assert all(len(set(draw)) == blocks for draw in draws)
    visits = Counter(block for draw in draws for block in draw)
    expected = turns * blocks / layers
    # Without replacement: the sum is chi-squared with 11 degrees of freedom times (12 - 3) / 11; 31.3 is its 99.9 % point.
    statistic = sum((visits[block] - expected) ** 2 / expected for block in range(layers))
    assert statistic * (layers - 1) / (layers - blocks) < 31.3, visits
    assert draws[:50] == [drawn_blocks(7, turn, layers, blocks) for turn in range(50)]
    assert draws[:50] != [drawn_blocks(8, turn, layers, blocks) for turn in range(50)]


def trained_blocks(engine: Engine) -> tuple[int, ...]:
    depths = {engine.learner.model.depth(name) for name in engine.parameters}
    assert {0, len(engine.learner.model.layers) + 1} <= depths, "embeddings, head and final norm always train"
    return tuple(sorted(depths - {0, len(engine.learner.model.layers) + 1}))


def test_exactly_so_many_blocks_train_and_the_others_have_no_moments(tmp_path: Path) -> None:
    with engine_with(tmp_path, Lisa(blocks=2, every=2), layers=6, steps=12) as engine:

        def look() -> tuple[tuple[int, ...], set[Any], dict[str, int]]:
            state = engine.optimizer.state
            updates = {name: int(state[p]["step"]) for name, p in engine.parameters.items() if p in state}
            return trained_blocks(engine), set(state) - set(engine.parameters.values()), updates

        steps = by_step(engine, look)
        assert all(len(blocks) == 2 and not odd for blocks, odd, _ in steps)
        for step in (0, 2, 4, 6, 8, 10):
            assert steps[step][0] == steps[step + 1][0], "the same blocks for two steps"
        assert len({blocks for blocks, _, _ in steps}) > 2
        assert {updates for name, updates in steps[-1][2].items() if name == "model.embed_tokens.weight"} == {12}
        for before, after in zip(steps, steps[1:], strict=False):
            newly = set(after[0]) - set(before[0])
            named = [name for name in after[2] if name.startswith(tuple(f"model.layers.{block - 1}." for block in newly))]
            assert not newly or not named, "a block that is drawn anew starts without moments"
        finish_model(engine.learner.model, list(engine.techniques))
        effect = engine.techniques[0].effect()
        assert effect.passed and "of 6 blocks" in effect.detail


def moment_bytes(engine: Engine) -> int:
    tensors = [value for state in engine.optimizer.state.values() for value in state.values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_moments_take_at_most_two_fifths_of_full_training(tmp_path: Path) -> None:
    most = []
    for technique in ((Lisa(blocks=2, every=2),), ()):
        with engine_with(tmp_path, *technique, layers=12, steps=6) as engine:
            most.append(max(by_step(engine, lambda: moment_bytes(engine))))  # noqa: B023
    assert most[0] <= 0.4 * most[1], f"{most[0] / most[1]:.2f} of full"


def test_the_draw_follows_the_seed_of_the_run(tmp_path: Path) -> None:
    found = []
    for seed in (0, 0, 1, 2, 3):
        recipe = recipe_with(tmp_path, Lisa(blocks=2), layers=8).model_copy(update={"seed": seed})
        with open_run(recipe, tmp_path / "engine") as folder:
            found.append(trained_blocks(start_engine(recipe, folder)[1]))
    assert found[0] == found[1] and len(set(found)) > 2


# -- Spectrum ----------------------------------------------------------------------------------------------------------
def noise(rows: int, columns: int, deviation: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64) * deviation


@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.1])
def test_the_median_is_that_of_real_noise(ratio: float) -> None:
    columns = 800
    x = noise(round(ratio * columns), columns, 1.0)
    measured = float(torch.linalg.eigvalsh(x @ x.T / columns).median())
    assert marchenko_pastur_median(ratio) == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("shape", [(120, 300), (300, 120), (200, 200)])
def test_the_bound_parts_planted_signal_from_noise(shape: tuple[int, int]) -> None:
    rows, columns = shape
    pure = noise(rows, columns, 0.02)
    edge = 0.02 * (math.sqrt(rows) + math.sqrt(columns))
    values = torch.linalg.svdvals(pure)
    assert noise_bound(values, rows, columns) == pytest.approx(edge, rel=0.02)
    assert int((values > noise_bound(values, rows, columns)).sum()) <= 1
    u, v = torch.linalg.qr(noise(rows, 3, 1.0, 1))[0], torch.linalg.qr(noise(columns, 3, 1.0, 2))[0]
    planted = pure + 4 * edge * u @ v.T
    values = torch.linalg.svdvals(planted)
    bound = noise_bound(values, rows, columns)
    assert int((values > bound).sum()) == 3
    by_hand = float(values[values > bound].sum() / values[values <= bound].sum() / values[0])
    assert signal_to_noise(planted) == pytest.approx(by_hand, rel=1e-9)
    assert signal_to_noise(planted.T) == pytest.approx(by_hand, rel=1e-9)
    assert signal_to_noise(planted) > signal_to_noise(pure)


def test_an_empty_matrix_has_no_signal() -> None:
    assert signal_to_noise(torch.zeros(4, 6)) == 0.0


def test_the_top_share_is_rounded_up_and_ties_go_to_the_first() -> None:
    assert top_share({"a": 1.0, "b": 3.0, "c": 2.0, "d": 0.0}, 0.5) == ["b", "c"]
    assert top_share({"a": 0.0, "b": 0.0, "c": 0.0}, 0.34) == ["a", "b"]
    assert top_share({"a": 0.0, "b": 1.0}, 0.01) == ["b"]


def test_spectrum_finds_the_matrix_with_planted_signal(tmp_path: Path) -> None:
    tiny_causal(tmp_path / "model", num_hidden_layers=4)
    model = open_tiny(tmp_path / "model")
    weight = model.parameters_by_name()["model.layers.2.mlp.up_proj.weight"]
    with torch.no_grad():
        u = torch.linalg.qr(noise(weight.shape[0], 2, 1.0))[0] @ torch.linalg.qr(noise(weight.shape[1], 2, 1.0))[0].T
        weight.add_(u * 40 * weight.std())
    technique = Spectrum()
    settings = resolve_groups(model, [technique])
    trained = {name for name, each in settings.items() if each.trainable}
    assert "model.layers.2.mlp.up_proj.weight" in trained
    assert Counter(name.rpartition("layers.")[2][2:] for name in trained).most_common(1)[0][1] == 1, "a quarter of each kind"
    assert len(trained) == 7
    model.notes = ()
    technique.begin(model, apply_groups(model, settings))
    assert "up_proj of 3 (" in model.notes[0]
    assert "model.layers.2.mlp.up_proj.weight" in technique.state()["table"]["mlp.up_proj"]


# -- surgical ----------------------------------------------------------------------------------------------------------
def test_the_table_is_gradient_norm_over_weight_norm(tmp_path: Path) -> None:
    with engine_with(tmp_path, Surgical(rows=1000)) as engine:
        technique, model = engine.techniques[0], engine.learner.model
        assert isinstance(technique, Surgical)
        assert not any(p.grad is not None for p in model.parameters()), "nothing of the measurement is left"
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        model.eval()
        total = torch.zeros(())
        count = 0.0
        for start in range(0, len(engine.feed.encoded), 8):
            indices = list(range(start, min(start + 8, len(engine.feed.encoded))))
            for batch in engine.feed.micro_batches(indices, 512, engine.parallel, engine.progress()):
                forward = forward_pass(model, batch)
                total, count = total + forward.losses.cross_entropy, count + forward.count
        (total / count).backward()
        table = technique.state()["table"]
        assert set(table) == {"embeddings", *(f"block {depth}" for depth in range(1, 5))}, "the head is tied"
        for unit, measured in table.items():
            depth = 0 if unit == "embeddings" else int(unit.split()[1])
            own = [p for name, p in model.parameters_by_name().items() if model.depth(name) == depth]
            gradient = math.sqrt(sum(float(p.grad.pow(2).sum()) for p in own if p.grad is not None))
            weight = math.sqrt(sum(float(p.detach().pow(2).sum()) for p in own))
            assert measured == pytest.approx(gradient / weight, rel=1e-4), unit
        chosen = sorted(table, key=lambda unit: -table[unit])[: math.ceil(0.25 * 5)]
        assert set(technique.state()["chosen"]) == set(chosen)
        assert any(all(f"{unit} {value:.3g}" in note for unit, value in table.items()) for note in model.notes)


def test_a_trial_step_has_a_size_and_nothing_else() -> None:
    torch.manual_seed(0)
    still, moved = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(4, 5))
    before = moved.detach().clone()
    moved.grad = 1e-6 * torch.randn(4, 5)
    direction = moved.grad / moved.grad.norm()
    step_down([still, moved], 0.1)
    torch.testing.assert_close(moved.detach(), before - 0.1 * before.norm() * direction)
    assert moved.grad is None and still.grad is None


def test_a_trial_counts_what_a_unit_gains_and_puts_all_back(tmp_path: Path) -> None:
    with engine_with(tmp_path, Surgical(by="trial", share=0.01, rows=32)) as engine:
        technique, model = engine.techniques[0], engine.learner.model
        before = snapshot(engine)
        state = technique.state()
        table = state["table"]
        assert len(table) == 5 and all(gain >= 0 for gain in table.values()) and max(table.values()) > 0.1
        assert state["chosen"] == [max(table, key=lambda unit: table[unit])]
        assert "loss saved in a trial" in technique.detail()
    with engine_with(tmp_path, Surgical(by="gradient", share=0.01)) as other:
        for name, parameter in other.learner.model.parameters_by_name().items():
            assert torch.equal(parameter, before[name]), f"{name} was not put back"
    frozen = [p for name, p in model.parameters_by_name().items() if name not in engine.parameters]
    assert frozen and all(p.grad is None for p in frozen)


@pytest.mark.slow
def test_a_unit_that_cannot_help_gains_nothing(tmp_path: Path) -> None:
    """A block whose outputs are multiplied by nothing has no gradient, so its trial changes nothing."""
    recipe = recipe_with(tmp_path, Surgical(by="trial", share=0.01, rows=32))
    with open_run(recipe, tmp_path / "engine") as folder:
        assembly, engine = start_engine(recipe, folder)
        model, technique = engine.learner.model, Surgical(by="trial", share=0.01, rows=32)
        with torch.no_grad():
            for name, parameter in model.parameters_by_name().items():
                if model.depth(name) == 2 and (
                    "o_proj" in name or "down_proj" in name or "v_proj" in name or "up_proj" in name
                ):
                    parameter.zero_()
        technique.samples(assembly.corpora["train"])
        technique.choose(model)
        assert technique.state()["table"]["block 2"] == 0.0


def test_the_placebo_trains_as_many_units(tmp_path: Path) -> None:
    drawn = set()
    for seed in range(4):
        recipe = recipe_with(tmp_path, Surgical(by="random")).model_copy(update={"seed": seed})
        with open_run(recipe, tmp_path / "engine") as folder:
            technique = start_engine(recipe, folder)[1].techniques[0]
            assert len(technique.state()["chosen"]) == 2
            drawn.add(tuple(technique.state()["chosen"]))
    assert len(drawn) > 1


def test_a_class_head_is_never_a_candidate_and_always_trains(tmp_path: Path) -> None:
    with engine_with(tmp_path, Surgical(share=0.01), head="classifier") as engine:
        assert "score.weight" in engine.parameters
        assert "head" not in engine.techniques[0].state()["table"]


def test_another_choice_after_a_restart_is_refused(tmp_path: Path) -> None:
    with engine_with(tmp_path, Surgical()) as engine:
        technique = engine.techniques[0]
        state = technique.state()
        technique.load_state(state)
        with pytest.raises(RecipeError, match="chooses other blocks"):
            technique.load_state({**state, "chosen": ["block 9"]})


def test_rows_are_taken_at_even_distances() -> None:
    assert spread(10, 4) == [0, 2, 5, 7] and spread(3, 64) == [0, 1, 2] and spread(0, 4) == []


# -- block expansion ---------------------------------------------------------------------------------------------------
def saved(folder: Path, model: Any) -> Path:
    model.eval().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def decoder(folder: Path, kind: str, **changes: Any) -> Path:
    """A tiny decoder of another family; ``kind`` is its model type."""
    size = len(tiny_tokenizer())
    torch.manual_seed(0)
    if kind == "gpt2":
        config = GPT2Config(vocab_size=size, n_embd=32, n_layer=4, n_head=4, n_positions=64, **changes)
        return saved(folder, GPT2LMHeadModel(config))
    shared = {"vocab_size": size, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    if kind == "gpt_neox":
        return saved(folder, GPTNeoXForCausalLM(GPTNeoXConfig(**shared)))
    windows = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2, "num_key_value_heads": 2}
    return saved(folder, Qwen2ForCausalLM(Qwen2Config(**shared, **windows)))


@pytest.mark.parametrize(
    ("layers", "blocks", "expected"),
    [(32, 8, [3, 7, 11, 15, 19, 23, 27, 31]), (2, 1, [1]), (6, 2, [2, 5]), (5, 2, [2, 4]), (2, 3, [0, 1, 1])],
)
def test_new_blocks_end_even_parts(layers: int, blocks: int, expected: list[int]) -> None:
    assert sources(layers, blocks) == expected


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "gpt_neox"])
def test_a_model_with_new_blocks_is_the_same_function_and_opens_in_transformers(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "before"
    folder = tiny_causal(folder, num_hidden_layers=4) if kind == "llama" else decoder(folder, kind)
    model, batch = open_tiny(folder), random_batch()
    before, names = outputs(model, batch), set(model.parameters_by_name())
    model = BlockExpansion(blocks=2).edit(model)
    assert float((outputs(model, batch) - before).abs().max()) == 0.0
    assert len(model.layers) == 6 == model.config.num_hidden_layers
    assert len(model.parameters_by_name()) > len(names) and model.longest == open_tiny(folder).longest
    numbers = [{part.layer_idx for part in block.modules() if hasattr(part, "layer_idx")} for block in model.layers]
    assert all(found <= {place} for place, found in enumerate(numbers)), numbers
    if kind == "qwen2":
        assert model.config.layer_types == ["full_attention"] * 3 + ["sliding_attention"] * 3
    with torch.no_grad():  # as if the new blocks had learned something
        for place in (2, 5):
            for projection in output_projections(model.layers[place]):
                projection.weight.normal_(std=0.05)
    commit_directory(tmp_path / "after", model.save, {})
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "after", attn_implementation="eager").eval()
    ids = batch.ids[:, : batch.lengths[0]]
    expected = outputs(model, random_batch((batch.lengths[0],)))
    with torch.no_grad():
        found = plain(random_batch((batch.lengths[0],)).ids).logits
    assert ids.shape == found.shape[:2] and not torch.allclose(before[:, : ids.shape[1]], expected, atol=1e-4)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_only_the_new_blocks_train_and_the_result_keeps_them(tmp_path: Path) -> None:
    with engine_with(tmp_path, BlockExpansion(blocks=2)) as engine:
        model, start = engine.learner.model, snapshot(engine)
        assert {model.depth(name) for name in engine.parameters} == {3, 6}
        engine.train()
        assert moved(start, snapshot(engine)) == set(engine.parameters)
        finished = finish_model(model, list(engine.techniques))
        assert len(finished.layers) == 6
        effect = engine.techniques[0].effect()
        assert effect.passed and "new blocks 3, 6" in effect.detail


def test_a_silent_block_is_not_dead(tmp_path: Path) -> None:
    tiny_causal(tmp_path / "model")
    technique = BlockExpansion(blocks=1)
    model = technique.edit(open_tiny(tmp_path / "model"))
    trainable = apply_groups(model, resolve_groups(model, [technique]))
    optimizer, batch = torch.optim.AdamW(trainable.values(), lr=1e-2), random_batch()
    outer = {name for name in trainable if "o_proj" in name or "down_proj" in name}
    for step in range(2):
        forward = forward_pass(model, batch)
        (forward.losses.cross_entropy / forward.count).backward()
        sizes = {name: float(p.grad.abs().max()) for name, p in trainable.items()}
        assert all(sizes[name] > 0 for name in outer), "the output projections learn from the first step on"
        inner = {name: size for name, size in sizes.items() if name not in outer}
        assert inner and all((size > 0) == (step == 1) for size in inner.values()), f"step {step}: {inner}"
        optimizer.step()
        optimizer.zero_grad()


def test_what_cannot_be_expanded_is_refused(opener: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot add blocks") as caught:
        BlockExpansion().edit(opener("encoder", "class"))
    assert "normalise after" in caught.value.why and "lora" in caught.value.fix
    scaled = decoder(tmp_path / "scaled", "gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(RecipeError, match="cannot add blocks"):
        BlockExpansion(blocks=4).edit(open_tiny(scaled))
