"""Dropout injection, stochastic depth and early-layer noise: off, at evaluation, in expectation."""

from __future__ import annotations

import pytest
import torch

from uplift.core.errors import RecipeError
from uplift.learn.assemble import finish_model
from uplift.techniques.adapt.lora import Lora
from uplift.techniques.chance import linear_layers, residual_outputs
from uplift.techniques.regularize.dropout import Dropout
from uplift.techniques.regularize.layer_noise import LayerNoise, noise_like
from uplift.techniques.regularize.stochastic_depth import StochasticDepth, drop_rates, skipped
from uplift.testing.passes import forward_pass, open_tiny, outputs, random_batch
from uplift.testing.tiny import tiny_encoder, tiny_recipe
from uplift.testing.training import differences, train

CHANCE = [Dropout(p=0.3), Dropout(p=0.3, places=["hidden"]), StochasticDepth(p=0.5), LayerNoise(strength=0.3)]


def hidden(model, batch):
    with torch.no_grad():
        return model.hidden(model.embed(batch.ids), batch.positions, batch.lengths)


@pytest.mark.parametrize("kind", ["causal", "encoder"])
@pytest.mark.parametrize("technique", CHANCE, ids=str)
def test_evaluation_is_exactly_the_plain_model(opener, technique, kind):
    head = "class" if kind == "encoder" else "language"
    model, batch, technique = opener(kind, head=head), random_batch(), technique.fresh()
    plain, names = hidden(model, batch), set(model.state_dict())
    model = technique.edit(model)
    assert torch.equal(hidden(model, batch), plain) and set(model.state_dict()) == names
    assert not technique.effect().passed
    model.train()
    first, second = hidden(model, batch), hidden(model, batch)
    assert not torch.equal(first, plain) and not torch.equal(first, second)
    model.eval()
    assert torch.equal(hidden(model, batch), plain)
    technique.finish(model)
    model.train()
    assert torch.equal(hidden(model, batch), plain), "something was left in the model"


@pytest.mark.parametrize("technique", [Dropout(p=0.0), StochasticDepth(p=0.0), LayerNoise(strength=0.0)], ids=str)
def test_without_strength_nothing_is_put_into_the_model(opener, technique):
    model, batch = opener(), random_batch()
    plain = hidden(model, batch)
    assert torch.equal(hidden(technique.edit(model).train(), batch), plain)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("technique", [Dropout(p=0.2), StochasticDepth(p=0.4), LayerNoise(strength=0.2)], ids=str)
def test_the_mean_of_one_block_over_many_passes_is_the_plain_block(opener, technique):
    model, batch = opener().double(), random_batch()
    del model.pretrained.model.layers[1]  # one block, and no norm after it: the mean is exact
    model.pretrained.config.num_hidden_layers = 1
    model.pretrained.model.norm = torch.nn.Identity()
    settings = {"layers": 1} if isinstance(technique, LayerNoise) else {}
    settings |= {"places": ["feed_forward"]} if isinstance(technique, Dropout) else {}
    technique = technique.model_copy(update=settings).fresh()
    plain = hidden(model, batch)
    model = technique.edit(model).train()
    torch.manual_seed(0)
    passes = torch.stack([hidden(model, batch) for _ in range(3000)])
    error = passes.std(0) / len(passes) ** 0.5
    assert ((passes.mean(0) - plain).abs() <= 5.5 * error + 1e-9).all()
    assert technique.effect().passed


# -- where dropout goes ------------------------------------------------------------------------------------------------
def test_the_outputs_before_the_residual_are_found(opener):
    block = opener().layers[0]
    assert residual_outputs(block, 32) == {"attention": block.self_attn.o_proj, "feed_forward": block.mlp}
    block = opener("encoder", head="class").layers[0]
    found = {"attention": block.attention.output.dense, "feed_forward": block.output.dense}
    assert residual_outputs(block, 32) == found


def test_they_are_found_in_adapters_too(opener):
    for techniques in ([Lora(rank=2), Dropout(p=0.5)], [Dropout(p=0.5), Lora(rank=2)]):
        model, batch = opener(), random_batch()
        plain = hidden(model, batch)
        for technique in sorted(techniques, key=lambda each: each.phase == "precision"):
            model = technique.edit(model)
        assert set(linear_layers(model.layers[0])) >= {"self_attn.o_proj", "mlp.down_proj"}
        assert not torch.equal(hidden(model.train(), batch), plain)
        model = finish_model(model, techniques)
        assert torch.equal(hidden(model.train(), batch), plain)


def test_a_dropped_share_and_the_scale_of_the_rest(opener):
    model, batch = opener(), random_batch((400, 300))
    block, seen = model.layers[0], []
    Dropout(p=0.25, places=["feed_forward"]).edit(model)
    block.mlp.down_proj.register_forward_hook(lambda module, arguments, output: seen.append(output))
    block.mlp.register_forward_hook(lambda module, arguments, output: seen.append(output))
    hidden(model.train(), batch)
    before, after = seen
    zeros = (after == 0).double().mean().item()
    assert zeros == pytest.approx(0.25, abs=0.02)
    assert torch.allclose(after[after != 0], before[after != 0] / 0.75)


def test_a_model_with_dropout_of_its_own_is_refused(tmp_path):
    model = open_tiny(tiny_encoder(tmp_path / "encoder", hidden_dropout_prob=0.1), "class")
    with pytest.raises(RecipeError, match=r"its own \(p = 0.1\)"):
        Dropout().edit(model)


def test_noise_wants_blocks_that_exist(opener):
    with pytest.raises(RecipeError, match="has 2 blocks"):
        LayerNoise(layers=3).edit(opener())


# -- stochastic depth --------------------------------------------------------------------------------------------------
def test_the_chance_grows_linearly_and_the_mean_is_kept():
    assert drop_rates(0.4, 4) == pytest.approx([0.1, 0.2, 0.3, 0.4])
    given, output = torch.randn(1, 6, 8), torch.randn(1, 6, 8)
    nothing, all_of_it = (torch.full((1, 6, 1), flag) for flag in (False, True))
    assert torch.equal(skipped(output, given, nothing, 0.25), given)
    whole = skipped(output, given, all_of_it, 0.25)
    assert torch.allclose(0.75 * whole + 0.25 * given, output, atol=1e-6)


def test_documents_of_a_packed_row_skip_one_by_one(opener):
    model, batch = opener(), random_batch((40, 1, 7, 30, 12, 9))
    plain = hidden(model, batch)[0]
    StochasticDepth(p=0.5).edit(model)
    torch.manual_seed(1)
    found = hidden(model.train(), batch)[0]
    same = [
        torch.allclose(a, b) for a, b in zip(plain.split(list(batch.lengths)), found.split(list(batch.lengths)), strict=True)
    ]
    assert not any(same)  # a kept block is scaled up
    with torch.no_grad():
        model.layers[1].mlp.down_proj.weight.zero_()
        model.layers[1].self_attn.o_proj.weight.zero_()
        model.layers[0].mlp.down_proj.weight.zero_()
        model.layers[0].self_attn.o_proj.weight.zero_()
    assert torch.allclose(hidden(model, batch), hidden(model.eval(), batch))  # blocks that change nothing


# -- noise -------------------------------------------------------------------------------------------------------------
def test_noise_has_its_share_of_every_states_norm():
    states = torch.randn(3, 50, 512) * torch.rand(3, 50, 1) * 100
    ratio = noise_like(states, 0.2).norm(dim=-1) / states.norm(dim=-1)
    assert ratio.mean().item() == pytest.approx(0.2, rel=0.01) and ratio.std().item() < 0.02
    assert torch.count_nonzero(noise_like(torch.zeros(1, 4, 8), 0.2)) == 0


def test_only_the_first_blocks_are_noisy(opener):
    model, batch = opener(), random_batch()
    technique = LayerNoise(strength=0.1, layers=1)
    technique.edit(model)
    hidden(model.train(), batch)
    assert technique.state()["seen"][1] == 1.0


# -- in a run ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("technique", [Dropout(), StochasticDepth(p=0.3), LayerNoise()], ids=str)
def test_frozen_blocks_are_run_anew_at_every_step(tmp_path, technique):
    """Their output cannot be kept from before when chance is at work in them."""
    recipe = tiny_recipe(
        tmp_path,
        techniques=[{"use": "linear_probe"}, technique],
        task_options={"head": "classifier"},
        train={"steps": 20},
    )
    trained = train(recipe, tmp_path / "runs")
    assert trained.techniques[1].effect().passed


def test_the_classifier_of_an_encoder_trains_under_chance(tmp_path):
    model = tiny_encoder(tmp_path / "encoder")
    techniques = [Dropout(), StochasticDepth(p=0.3), LayerNoise()]
    recipe = tiny_recipe(
        tmp_path, techniques=techniques, model={"id": str(model)}, task_options={"head": "classifier"}, train={"steps": 12}
    )
    first, second = (train(recipe, tmp_path / name) for name in ("a", "b"))
    assert all(technique.effect().passed for technique in first.techniques)
    assert not differences(first, second)


def test_forward_pass_helper_sees_the_same_chance(opener):
    model, batch = Dropout(p=0.5).edit(opener()).train(), random_batch()
    losses = []
    for _ in range(2):
        torch.manual_seed(3)
        losses.append(forward_pass(model, batch).losses.cross_entropy.item())
    assert losses[0] == losses[1]
    assert torch.isfinite(outputs(model, batch)).all()
