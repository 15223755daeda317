"""IA3, VeRA and AdaLoRA: unchanged at the start, PEFT's own losses and gradients, an unchanged base, and the way to disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, PeftModel, VeraConfig, get_peft_model
from peft.tuners.adalora.layer import RankAllocator
from transformers import AutoModelForCausalLM

from uplift.core.errors import RecipeError
from uplift.core.legality import clashes_of
from uplift.core.recipe import HfModel
from uplift.core.values import Progress
from uplift.model.opening import open_model
from uplift.techniques.adapt.adalora import AdaLora, budget, unevenness, without_gaps
from uplift.techniques.adapt.ia3 import Ia3, usual_targets
from uplift.techniques.adapt.vera import Vera
from uplift.techniques.fingerprint import checksums, differing
from uplift.techniques.peft_adapter import PeftAdapter, adapter_tensors, tuner_layers
from uplift.testing.passes import forward_pass, outputs, random_batch, train_steps
from uplift.testing.tiny import tiny_recipe

ALL = (Ia3, Vera, AdaLora)
PLAIN_IA3 = {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}


def edited(technique: PeftAdapter, model, seed: int = 3):
    torch.manual_seed(seed)
    return technique.edit(model)


def trained(model, technique: PeftAdapter, batch) -> None:
    """A few steps; AdaLoRA's last allocation, which a real run makes on its way, is made."""
    train_steps(model, technique, batch)
    if isinstance(technique, AdaLora):
        technique._settle()


@pytest.mark.parametrize("kind", ALL)
def test_the_model_is_unchanged_at_the_start(opener, kind):
    for form in (("causal", "language"), ("causal", "class"), ("encoder", "class")):
        model, batch = opener(*form), random_batch()
        before = outputs(model, batch)
        assert torch.equal(before, outputs(edited(kind(), model), batch)), form


def test_trainable_counts_equal_their_formulas(opener):
    def count(model) -> int:
        return sum(p.numel() for p in model.parameters_by_name().values() if p.requires_grad)

    model = edited(Ia3(), opener())
    assert count(model) == 2 * (16 + 16 + 64)  # keys and values of 2 heads of 8, the inner width
    model = edited(Vera(rank=24), opener())
    layers = tuner_layers(model).values()
    assert len(layers) == 14 and count(model) == sum(24 + layer.out_features for layer in layers)
    model = edited(AdaLora(initial_rank=5, target_rank=2), opener())
    assert count(model) == sum(5 * (x.in_features + x.out_features + 1) for x in tuner_layers(model).values())


def plain_step(folder: Path, config, start: dict[str, torch.Tensor], batch, lr: float, steps: int):
    """Losses and last gradients of plain PEFT and transformers over the same documents, one at a time."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    named = {name: p for name, p in model.get_base_model().named_parameters() if p.requires_grad}
    assert named.keys() == start.keys()
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(start[name])
    losses, optimizer = [], torch.optim.AdamW(named.values(), lr=lr, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        total, first = torch.zeros(()), 0
        for length in batch.lengths:
            ids, weights = batch.ids[:, first : first + length], batch.weights[0, first : first + length]
            logits = model(input_ids=ids).logits[0, :-1]
            total = total + torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none") @ weights[:-1]
            first += length
        loss = total / batch.weights.sum()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    return losses, {name: p.grad for name, p in named.items()}


@pytest.mark.parametrize("kind", [Ia3, Vera])
def test_losses_and_gradients_are_those_of_plain_peft(opener, model_folders, kind):
    """Five steps of AdamW, then the gradients of the sixth."""
    batch, steps = random_batch(), 6
    model = edited(kind(), opener())
    if kind is Vera:
        key = model.peft.peft_config["default"].projection_prng_key
        config = VeraConfig(task_type="CAUSAL_LM", r=256, target_modules="all-linear", projection_prng_key=key)
    else:
        config = IA3Config(task_type="CAUSAL_LM", **PLAIN_IA3)
    trained = {name: p for name, p in model.parameters_by_name().items() if p.requires_grad}
    expected, wanted = plain_step(model_folders["causal"], config, trained, batch, 1e-2, steps)
    optimizer, losses = torch.optim.AdamW(trained.values(), lr=1e-2, weight_decay=0.0), []
    for _ in range(steps):
        optimizer.zero_grad()
        forward = forward_pass(model, batch)
        loss = forward.losses.cross_entropy / forward.count
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert max(abs(a - b) for a, b in zip(losses, expected, strict=True)) < 1e-6 * max(losses)
    size = max(float(g.abs().max()) for g in wanted.values())
    assert all((trained[name].grad - wanted[name]).abs().max() < 1e-6 * max(1.0, size) for name in trained)


@pytest.mark.parametrize("kind", ALL)
def test_the_base_stays_and_the_merge_keeps_the_outputs(opener, kind):
    for form in (("causal", "language"), ("encoder", "class")):
        model, batch, technique = opener(*form), random_batch(), kind()
        base = checksums(model.parameters_by_name())
        edited(technique, model)
        trained(model, technique, batch)
        apart = outputs(model, batch)
        plain = {name.replace(".base_layer.", "."): p for name, p in model.parameters_by_name().items()}
        assert not [n for n in differing(base, plain) if not n.startswith(("score", "classifier"))]
        merged = technique.finish(model)
        assert technique.effect().passed, technique.effect()
        assert merged.peft is None and not tuner_layers(merged)
        assert set(merged.parameters_by_name()) == set(opener(*form).parameters_by_name())
        assert (outputs(merged, batch) - apart).abs().max() < 1e-5
        assert not torch.equal(outputs(opener(*form), batch), apart)


@pytest.mark.parametrize("kind", ALL)
def test_saved_apart_and_loaded_again_gives_the_same_bits(opener, model_folders, tmp_path: Path, kind):
    model, batch, technique = opener(), random_batch(), kind(merge=False)
    edited(technique, model)
    train_steps(model, technique, batch)
    technique.finish(model)
    expected = outputs(model, batch)
    model.save(tmp_path / "saved")

    fresh = opener()
    fresh.peft = PeftModel.from_pretrained(fresh.pretrained, str(tmp_path / "saved" / "adapter")).eval()
    assert torch.equal(outputs(fresh, batch), expected)
    spec, device = HfModel(id=str(tmp_path / "saved")), torch.device("cpu")
    merged = open_model(spec, head="language", base_dir=Path(), device=device, seed=0)
    assert merged.peft is None and (outputs(merged, batch) - expected).abs().max() < 1e-5
    base = dict(AutoModelForCausalLM.from_pretrained(model_folders["causal"]).named_parameters())
    saved = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "saved", adapter_kwargs=None).named_parameters())
    plain = {name.replace(".base_layer.", "."): p for name, p in saved.items()}
    assert all(torch.equal(base[name], plain[name]) for name in base)


@pytest.mark.parametrize("kind", ALL)
def test_a_merged_adapter_can_still_be_written_apart(opener, tmp_path: Path, kind):
    model, batch, technique = opener(), random_batch(), kind()
    edited(technique, model)
    trained(model, technique, batch)
    apart = outputs(model, batch)
    merged = technique.finish(model)
    merged.merged_adapter.save(tmp_path)
    fresh = opener()
    fresh.peft = PeftModel.from_pretrained(fresh.pretrained, str(tmp_path)).eval()
    assert (outputs(fresh, batch) - apart).abs().max() < (1e-6 if kind is AdaLora else 1e-30)  # its zeros are gone


@pytest.mark.parametrize("kind", ALL)
def test_proofs_do_not_hold_for_nothing(opener, kind):
    model, technique = opener(), kind()
    edited(technique, model)
    technique.begin(model, {})
    technique.finish(model)
    assert not technique.effect().passed
    model, technique, batch = opener(), kind(), random_batch()
    edited(technique, model)
    train_steps(model, technique, batch)
    with torch.no_grad():
        model.parameters_by_name()["model.norm.weight"][3] += 1e-6
    technique.finish(model)
    assert not technique.effect().passed and "norm" in technique.effect().detail


@pytest.mark.parametrize("kind", ALL)
def test_targets_that_fit_nothing_are_refused(opener, kind):
    with pytest.raises(RecipeError) as error:
        kind(targets=["no_such_layer"]).edit(opener())
    assert "q_proj" in str(error.value)
    with pytest.raises(RecipeError, match="language head"):
        kind(targets=["lm_head"]).edit(opener())
    with pytest.raises(RecipeError, match="without an adapter"):
        kind().edit(edited(Ia3(), opener()))


# -- IA3 ---------------------------------------------------------------------------------------------------------------
def test_factors_do_not_decay(opener):
    model = edited(Ia3(), opener())
    (rule,) = Ia3().groups(model)
    assert rule.weight_decay == 0.0 and len(rule.names) == 6
    assert rule.names == {name for name, p in model.parameters_by_name().items() if p.requires_grad}


def test_targets_of_a_model_that_peft_does_not_know(opener, monkeypatch):
    model = opener()
    known = usual_targets(model)
    monkeypatch.setattr(model.config, "model_type", "unheard_of")
    targets, feed_forward = usual_targets(model)
    paths = {name for name, _ in model.pretrained.named_modules()}
    assert {t for t in paths if t.endswith(tuple(f".{name}" for name in known[0]))} == set(targets)
    assert {t for t in paths if t.endswith(tuple(f".{name}" for name in known[1]))} == set(feed_forward)


def test_merging_factors_into_a_rounded_base_is_refused(tmp_path: Path):
    rounded = {"use": "quantized_base", "format": "int8"}
    refused = clashes_of(tiny_recipe(tmp_path, techniques=[{"use": "ia3"}, rounded]))
    assert any("merge: false" in clash.fix for clash in refused)
    assert not clashes_of(tiny_recipe(tmp_path, techniques=[{"use": "ia3", "merge": False}, rounded]))


# -- VeRA --------------------------------------------------------------------------------------------------------------
def test_random_matrices_follow_the_seed_and_are_shared(opener):
    first, second, other = (edited(Vera(), opener(), seed) for seed in (3, 3, 4))
    keys = [model.peft.peft_config["default"].projection_prng_key for model in (first, second, other)]
    assert keys[0] == keys[1] != keys[2]
    matrices = {layer.vera_A["default"].data_ptr() for layer in tuner_layers(first).values()}
    assert len(matrices) == 1 and not any("vera_A" in name for name in first.parameters_by_name())


# -- AdaLoRA -----------------------------------------------------------------------------------------------------------
def test_the_budget_is_pefts(opener):
    model = edited(AdaLora(), opener())
    config = AdaLoraConfig(init_r=12, target_r=8, total_step=1000, tinit=100, tfinal=300)
    allocator = RankAllocator(model.pretrained, config, "default")
    assert allocator.init_bgt == 14 * 12 and allocator.target_bgt == 14 * 8
    for step in range(0, 1001):
        expected, _ = allocator.budget_schedule(step)
        assert abs(budget(step / 1000, 0.1, 0.3, allocator.init_bgt, allocator.target_bgt) - expected) <= (step > 100), step
    assert [budget(f, 0.1, 0.3, 168, 112) for f in (0.0, 0.1, 0.7, 0.9)] == [168, 168, 112, 112]


def test_importances_and_allocation_are_pefts(opener):
    """Step by step beside PEFT's own ``update_and_allocate`` on a twin model."""
    batch, steps = random_batch(), 20
    options = {"initial_rank": 6, "target_rank": 2, "warmup": 0.1, "final": 0.3, "orthogonality": 0.5, "every": 1}
    ours, technique = opener(), AdaLora(**options)
    edited(technique, ours)
    theirs = opener()
    config = technique.config(theirs)
    config.total_step, config.tinit, config.tfinal = steps, 2, 6
    torch.manual_seed(3)
    theirs.peft = get_peft_model(theirs.pretrained, config)
    pairs = []
    for model in (ours, theirs):
        trained = [p for p in model.parameters_by_name().values() if p.requires_grad]
        pairs.append((model, trained, torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)))
    for step in range(steps):
        for model, trained, optimizer in pairs:
            optimizer.zero_grad()
            forward = forward_pass(model, batch)
            terms = technique.terms(forward, batch) if model is ours else {}
            loss = forward.losses.cross_entropy / forward.count + sum(t.sum / t.count for t in terms.values())
            if model is theirs:
                layers = tuner_layers(model).values()
                grams = [p @ p.T for x in layers for p in (x.lora_A["default"], x.lora_B["default"].T)]
                loss = loss + 0.5 * sum(torch.norm(g - torch.eye(len(g)), p="fro") for g in grams) / len(grams)
            loss.backward()
            optimizer.step()
            if model is ours:
                parameters = dict(enumerate(trained))
                technique.after_update(parameters, Progress(step=step, fraction=step / steps), 1e-2)  # type: ignore[arg-type]
            else:
                model.peft.base_model.update_and_allocate(step)
        kept = [[int((e != 0).sum()) for e in adapter_tensors(model, "lora_E")] for model in (ours, theirs)]
        assert kept[0] == kept[1], step
    assert sum(kept[0]) <= 2 * 14 < 6 * 14
    names = ours.parameters_by_name()
    assert all((p - names[n]).abs().max() < 1e-6 for n, p in theirs.parameters_by_name().items())


def test_the_state_survives_a_restart(opener):
    batch = random_batch()
    whole, technique = opener(), AdaLora(warmup=0.0)
    edited(technique, whole)
    fresh_state = AdaLora().state()
    assert fresh_state == {"base": {}}
    parameters = train_steps(whole, technique, batch)
    for _ in range(2):
        for p in parameters.values():
            p.grad = torch.ones_like(p) * 1e-3
        technique.after_update(parameters, Progress(step=1, fraction=0.3), 1e-2)
    again, other = opener(), AdaLora(warmup=0.0)
    edited(other, again)
    other.begin(again, {})
    other.load_state(technique.state())
    with torch.no_grad():
        for name, p in again.parameters_by_name().items():
            p.copy_(whole.parameters_by_name()[name])
    for model, each in ((whole, technique), (again, other)):
        trained = {n: p for n, p in model.parameters_by_name().items() if p.requires_grad}
        for p in trained.values():
            p.grad = torch.full_like(p, 2e-3)
        each.after_update(trained, Progress(step=2, fraction=0.5), 1e-2)
    assert technique._pattern == other._pattern and technique._pattern
    first, second = technique.state()["importance"], other.state()["importance"]
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_orthonormal_directions_cost_nothing():
    q, _ = torch.linalg.qr(torch.randn(20, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    assert unevenness(q.T) < 1e-12 and abs(float(unevenness(2 * q.T)) - 3 * 5**0.5) < 1e-12


def test_frozen_parts_count_as_unimportant():
    frozen, trained = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    trained.grad = torch.ones(2)
    with without_gaps([frozen, trained]):
        assert torch.equal(frozen.grad, torch.zeros(2)) and torch.equal(trained.grad, torch.ones(2))
    assert frozen.grad is None and trained.grad is not None


@pytest.mark.parametrize("options", [{"initial_rank": 8, "target_rank": 8}, {"warmup": 0.6, "final": 0.4}])
def test_impossible_budgets_are_refused(options):
    with pytest.raises(ValueError, match=r"target_rank|warmup"):
        AdaLora(**options)
