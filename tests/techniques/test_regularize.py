from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from uplift.core.values import Progress
from uplift.techniques.regularize.ema import Ema, effective_decay
from uplift.techniques.regularize.l1_proximal import L1Proximal, soft_threshold, zero_share
from uplift.techniques.regularize.l2_sp import L2Sp, pull
from uplift.techniques.regularize.label_smoothing import LabelSmoothing
from uplift.testing.passes import forward_pass, outputs, random_batch, train_steps


# -- label smoothing ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("head", ["language", "class"])
@pytest.mark.parametrize("amount", [0.0, 0.1, 0.4])
def test_smoothed_loss_is_torchs(opener, head, amount):
    model, batch = opener(head=head), random_batch()
    forward = forward_pass(model, batch)
    terms = LabelSmoothing(amount=amount).terms(forward, batch)
    total = forward.losses.cross_entropy + sum(term.sum for term in terms.values())
    logits = outputs(model, batch)
    if head == "class":
        expected = nn.functional.cross_entropy(logits, batch.labels, label_smoothing=amount, reduction="sum")
    else:
        kept = batch.weights[0] > 0
        expected = nn.functional.cross_entropy(logits[0][kept], batch.targets[0][kept], label_smoothing=amount, reduction="sum")
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert bool(terms) == (amount > 0)
    assert all(term.count == forward.count and term.unit == forward.unit for term in terms.values())


def test_label_smoothing_proves_itself_by_the_logged_term():
    technique = LabelSmoothing()
    assert not technique.effect().passed
    technique.observe(Progress(step=1), {"loss_label_smoothing": 0.3})
    assert technique.effect().passed and technique.effect().value == pytest.approx(0.3)
    technique.observe(Progress(step=2), {})
    assert not technique.effect().passed


# -- L2-SP -------------------------------------------------------------------------------------------------------------
def test_l2_sp_pull_is_zero_at_the_start_and_linear_after():
    weight = torch.randn(3, 4)
    assert torch.count_nonzero(pull(weight, weight.clone(), 5.0)) == 0
    assert torch.allclose(pull(weight + 2.0, weight, 0.5), torch.ones(3, 4))


def test_l2_sp_adds_the_pull_to_the_gradient_and_spares_a_new_head(opener):
    model = opener(head="class")
    parameters = model.parameters_by_name()
    technique = L2Sp(strength=0.1)
    technique.begin(model, parameters)
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    technique.gradients(parameters, Progress())
    assert all(torch.count_nonzero(p.grad) == 0 for p in parameters.values())
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(1.0)
    technique.gradients(parameters, Progress(step=1))
    for name, parameter in parameters.items():
        expected = 0.0 if name.startswith("score") else 0.1
        assert torch.allclose(parameter.grad, torch.full_like(parameter, expected), atol=1e-6), name


def test_l2_sp_ends_nearer_to_the_start(opener):
    distances = []
    for strength in (0.001, 30.0):
        model, technique = opener(), L2Sp(strength=strength)
        train_steps(model, technique, random_batch(), steps=12)
        technique.finish(model)
        assert technique.effect().passed
        distances.append(technique.effect().value)
    assert distances[1] < 0.8 * distances[0]


# -- proximal L1 -------------------------------------------------------------------------------------------------------
def test_soft_threshold_gives_exact_zeros_and_a_subgradient_does_not():
    weight = torch.tensor([0.5, -0.5, 0.05, -0.05, 0.1, 0.0])
    shrunk = soft_threshold(weight, 0.1)
    assert torch.allclose(shrunk, torch.tensor([0.4, -0.4, 0.0, 0.0, 0.0, 0.0]))
    assert torch.count_nonzero(shrunk) == 2
    assert torch.count_nonzero(weight - 0.1 * weight.sign()) == 4
    assert torch.equal(soft_threshold(weight, 0.0), weight)


def test_l1_shrinks_the_matrices_of_the_layers_only(opener):
    model = opener()
    parameters = model.parameters_by_name()
    before = {name: p.detach().clone() for name, p in parameters.items()}
    technique = L1Proximal(strength=2.0)
    technique.begin(model, parameters)
    technique.after_update(parameters, Progress(), 0.01)
    technique.finish(model)
    for name, parameter in parameters.items():
        inside = parameter.ndim == 2 and ".layers." in name
        expected = soft_threshold(before[name], 0.02) if inside else before[name]
        assert torch.equal(parameter, expected), name
    effect = technique.effect()
    assert effect.passed and effect.value == zero_share([p for n, p in parameters.items() if p.ndim == 2 and ".layers." in n])
    assert 0.05 < effect.value < 0.5


# -- EMA ---------------------------------------------------------------------------------------------------------------
def test_ema_follows_its_formula_and_is_swapped_in(opener):
    model, technique = opener(), Ema(decay=0.5)
    name = "model.layers.0.mlp.up_proj.weight"
    expected = model.parameters_by_name()[name].detach().double().clone()
    parameters = model.parameters_by_name()
    technique.begin(model, parameters)
    assert technique.averaged(parameters) is None
    for update in range(20):
        with torch.no_grad():
            for parameter in parameters.values():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        technique.after_update(parameters, Progress(step=update), 0.1)
        decay = effective_decay(0.5, update)
        expected = decay * expected + (1 - decay) * parameters[name].detach().double()
    assert effective_decay(0.5, 0) == 0.1 and effective_decay(0.5, 100) == 0.5
    assert torch.allclose(technique.averaged(parameters)[name].double(), expected, atol=1e-5)
    last = parameters[name].detach().clone()
    technique.finish(model)
    assert torch.allclose(parameters[name].double(), expected, atol=1e-5)
    assert not torch.equal(parameters[name], last)
    assert technique.effect().passed


def test_ema_with_decay_zero_is_the_current_weights(opener):
    model, technique = opener(), Ema(decay=0.0)
    parameters = train_steps(model, technique, random_batch())
    assert all(torch.equal(technique.averaged(parameters)[name], p) for name, p in parameters.items())
    before = {name: p.detach().clone() for name, p in parameters.items()}
    technique.finish(model)
    assert all(torch.equal(before[name], p) for name, p in parameters.items())
    assert not technique.effect().passed


def test_ema_leaves_a_restored_best_step_alone(opener):
    model, technique = opener(), Ema(decay=0.9)
    parameters = train_steps(model, technique, random_batch())
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.fill_(0.25)  # somebody put the best step's average back
    technique.finish(model)
    assert all(bool((p == 0.25).all()) for p in parameters.values())
    assert technique.effect().passed


def test_ema_remembers_its_average_over_a_restart(opener):
    model, technique = opener(), Ema(decay=0.9)
    parameters = train_steps(model, technique, random_batch())
    other = Ema(decay=0.9)
    other.begin(model, parameters)
    other.load_state(technique.state())
    assert all(torch.equal(value, technique.averaged(parameters)[name]) for name, value in other.averaged(parameters).items())
    assert other.state()["updates"] == 3 and math.isfinite(other.state()["last"][0])
