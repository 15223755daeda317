"""Confidence penalty, R-Drop and KL to the reference: their formulas on full logits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from uplift.core.errors import RecipeError
from uplift.core.legality import clashes_of
from uplift.core.values import Progress
from uplift.techniques.adapt.lora import Lora
from uplift.techniques.chance import own_dropout, passes_differ
from uplift.techniques.frozen_copy import frozen_copy
from uplift.techniques.regularize.confidence_penalty import ConfidencePenalty
from uplift.techniques.regularize.dropout import Dropout
from uplift.techniques.regularize.kl_reference import KlReference
from uplift.techniques.regularize.r_drop import RDrop
from uplift.testing.passes import forward_pass, open_tiny, outputs, random_batch, train_steps
from uplift.testing.tiny import tiny_causal, tiny_encoder, tiny_recipe
from uplift.testing.training import train


def log_probabilities(model, batch):
    """(K, V) of the trained units, from full logits."""
    logits = outputs(model, batch)
    kept = logits if model.head_kind == "class" else logits[0][batch.weights[0] > 0]
    return kept.log_softmax(-1)


# -- confidence penalty ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("head", ["language", "class"])
@pytest.mark.parametrize("beta", [0.0, 0.1, 2.0])
def test_the_penalty_is_the_entropy_of_full_logits(opener, head, beta):
    model, batch = opener(head=head), random_batch()
    forward = forward_pass(model, batch)
    terms = ConfidencePenalty(beta=beta).terms(forward, batch)
    log_p = log_probabilities(model, batch)
    expected = -beta * -(log_p.exp() * log_p).sum().item()
    assert sum(term.sum.item() for term in terms.values()) == pytest.approx(expected, rel=1e-5)
    assert bool(terms) == (beta > 0)
    assert all(term.count == forward.count and term.unit == forward.unit for term in terms.values())


def test_the_penalty_raises_entropy(opener):
    entropies = []
    for beta in (0.0, 3.0):
        model, batch = opener(), random_batch()
        train_steps(model, ConfidencePenalty(beta=beta), batch, steps=10)
        log_p = log_probabilities(model, batch)
        entropies.append(-(log_p.exp() * log_p).sum(-1).mean().item())
    assert entropies[1] > 1.2 * entropies[0]


def test_the_penalty_proves_itself_by_the_logged_term():
    technique = ConfidencePenalty(beta=0.5)
    assert not technique.effect().passed
    technique.observe(Progress(step=1), {"loss_confidence_penalty": -1.0})
    assert technique.effect().passed and "entropy 2 nats" in technique.effect().detail
    technique.observe(Progress(step=2), {})
    assert not technique.effect().passed


# -- R-Drop ------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def noisy_folder(tmp_path_factory):
    return tiny_causal(tmp_path_factory.mktemp("noisy") / "model", attention_dropout=0.3)


def two_passes(folder, batch, technique):
    """(loss of the first pass, the technique's terms), under one random state."""
    model = open_tiny(folder).train()
    torch.manual_seed(5)
    forward = forward_pass(model, batch, technique)
    return forward, technique.terms(forward, batch)


def test_at_alpha_zero_the_loss_is_the_mean_of_two_passes(noisy_folder):
    batch = random_batch()
    forward, terms = two_passes(noisy_folder, batch, RDrop(alpha=0.0))
    total = forward.losses.cross_entropy + sum(term.sum for term in terms.values())
    torch.manual_seed(5)
    model = open_tiny(noisy_folder).train()
    torch.manual_seed(5)
    losses = [forward_pass(model, batch).losses.cross_entropy.item() for _ in range(2)]
    assert losses[0] != losses[1]
    assert total.item() == pytest.approx(sum(losses) / 2, rel=1e-6)
    assert terms["r_drop_divergence"].sum.item() == 0.0


def test_the_divergence_is_that_of_full_logits(noisy_folder):
    batch = random_batch()
    _, terms = two_passes(noisy_folder, batch, RDrop(alpha=0.7))
    model = open_tiny(noisy_folder).train()
    torch.manual_seed(5)
    p, q = (log_probabilities(model, batch) for _ in range(2))
    both = nn.functional.kl_div(q, p, log_target=True, reduction="sum") + nn.functional.kl_div(
        p, q, log_target=True, reduction="sum"
    )
    assert terms["r_drop_divergence"].sum.item() == pytest.approx(0.35 * both.item(), rel=1e-4)


def test_without_dropout_both_passes_are_equal_and_it_is_refused(opener):
    model, batch, technique = opener().train(), random_batch(), RDrop()
    terms = technique.terms(forward_pass(model, batch, technique), batch)
    assert all(term.sum.item() == 0.0 for term in terms.values())
    assert not passes_differ(model)
    with pytest.raises(RecipeError, match="compares two passes") as refused:
        technique.begin(model, model.parameters_by_name())
    assert "dropout" in refused.value.fix and "lora.dropout" in refused.value.fix
    assert model.training, "the look at the model changed its mode"


@pytest.mark.parametrize("source", ["own", "layers", "injected", "lora"])
def test_every_source_of_dropout_is_seen(opener, noisy_folder, tmp_path, source):
    if source == "own":
        model = open_tiny(noisy_folder)
    elif source == "layers":
        model = open_tiny(tiny_encoder(tmp_path / "encoder", hidden_dropout_prob=0.2), "class")
        assert own_dropout(model.layers) == 0.2
    elif source == "injected":
        model = Dropout().edit(opener())
    else:
        model = Lora(dropout=0.1).edit(opener())
    state = torch.get_rng_state()
    RDrop().begin(model, model.parameters_by_name())
    assert torch.equal(state, torch.get_rng_state()), "the look at the model moved the random state"


def test_r_drop_is_refused_in_a_run_of_a_model_without_dropout(tmp_path):
    with pytest.raises(RecipeError, match="this model has none"):
        train(tiny_recipe(tmp_path, techniques=[{"use": "r_drop"}]), tmp_path / "runs")
    recipe = tiny_recipe(tmp_path, techniques=[{"use": "r_drop"}, {"use": "dropout"}])
    assert train(recipe, tmp_path / "runs").techniques[0].effect().passed
    recipe = tiny_recipe(tmp_path, techniques=[{"use": "lora", "dropout": 0.2}, {"use": "r_drop"}])
    assert train(recipe, tmp_path / "runs").techniques[1].effect().passed


# -- KL to the reference -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_at_the_start_the_divergence_and_its_gradient_are_zero(opener, direction):
    model, batch, technique = opener(), random_batch(), KlReference(strength=1.0, direction=direction)
    parameters = model.parameters_by_name()
    technique.begin(model, parameters)
    forward = forward_pass(model, batch, technique)
    term = technique.terms(forward, batch)["kl_reference"]
    assert abs(term.sum.item()) <= 1e-6 * forward.losses.cross_entropy.item()
    (plain,) = torch.autograd.grad(forward.losses.cross_entropy, model.head_weight, retain_graph=True)
    (held,) = torch.autograd.grad(term.sum, model.head_weight)
    assert held.norm() <= 1e-5 * plain.norm()


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_the_divergence_to_the_start_is_that_of_full_logits(opener, direction):
    model, batch, technique = opener(), random_batch(), KlReference(strength=0.5, direction=direction)
    start = log_probabilities(model, batch)
    technique.begin(model, model.parameters_by_name())
    with torch.no_grad():
        for parameter in model.parameters_by_name().values():
            parameter.mul_(1.3)
    term = technique.terms(forward_pass(model, batch, technique), batch)["kl_reference"]
    now = log_probabilities(model, batch)
    p, q = (start, now) if direction == "forward" else (now, start)
    expected = 0.5 * (p.exp() * (p - q)).sum().item()
    assert term.sum.item() == pytest.approx(expected, rel=1e-4) and expected > 0.1
    technique.finish(model)
    assert technique._changed == []


def test_the_reference_is_no_part_of_the_model(opener):
    model = opener()
    names = set(model.parameters_by_name())
    technique = KlReference()
    technique.begin(model, model.parameters_by_name())
    copy = technique._reference
    assert set(model.parameters_by_name()) == names == set(copy.parameters_by_name())
    own = {parameter.data_ptr() for parameter in model.parameters()}
    assert not any(parameter.data_ptr() in own or parameter.requires_grad for parameter in copy.parameters())
    assert technique.state() == KlReference().state()
    technique.finish(model)
    assert technique._reference is None


def test_a_copy_under_an_adapter_is_the_whole_start(opener):
    model = Lora(rank=2).edit(opener())
    batch = random_batch()
    copy = frozen_copy(model)
    start = outputs(model, batch)
    with torch.no_grad():
        for name, parameter in model.parameters_by_name().items():
            if "lora_" in name:
                parameter.add_(0.1)
    assert torch.equal(outputs(copy, batch), start)
    assert not torch.equal(outputs(model, batch), start)


def test_a_stronger_pull_ends_nearer_to_the_start(tmp_path):
    ends = []
    for strength in (0.01, 30.0):
        recipe = tiny_recipe(tmp_path, techniques=[{"use": "kl_reference", "strength": strength}], train={"steps": 10})
        (technique,) = train(recipe, tmp_path / "runs").techniques
        assert technique.effect().passed
        ends.append(technique._last)
    assert ends[1] < 0.5 * ends[0]


def test_kl_reference_wants_a_language_head(tmp_path):
    recipe = tiny_recipe(tmp_path, techniques=[{"use": "kl_reference"}], task_options={"head": "classifier"})
    assert any("language head" in clash.why for clash in clashes_of(recipe))
