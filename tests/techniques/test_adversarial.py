from __future__ import annotations

import math

import pytest
import torch

from uplift.core.values import Progress
from uplift.data.packing import pack
from uplift.techniques.adversarial.fgm import Fgm
from uplift.techniques.adversarial.neftune import Neftune, expected_norm, noise_bound
from uplift.techniques.perturbation import norms_of_samples, perturbation
from uplift.testing.passes import forward_pass, outputs, random_batch, random_samples


# -- FGM ---------------------------------------------------------------------------------------------------------------
def test_a_perturbation_has_its_size_in_every_sample():
    lengths = (4, 1, 6)
    gradient = torch.randn(1, 11, 8)
    gradient[:, 4:5] = 0.0  # a sample without a gradient
    delta = perturbation(gradient, torch.tensor([0.5, 2.0, 3.0]), lengths)
    assert torch.allclose(norms_of_samples(delta, lengths), torch.tensor([0.5, 0.0, 3.0]), atol=1e-6)
    along = torch.nn.functional.cosine_similarity(delta[0, 5:].flatten(), gradient[0, 5:].flatten(), dim=0)
    assert along.item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("head", ["language", "class"])
def test_without_size_the_attacked_pass_has_the_clean_gradients(opener, head):
    gradients = []
    for technique in (None, Fgm(eps=0.0)):
        model, batch = opener(head=head), random_batch()
        forward = forward_pass(model, batch, technique)
        loss = forward.losses.cross_entropy
        if technique:
            loss = technique.terms(forward, batch)["fgm"].sum
        loss.backward()
        gradients.append({n: p.grad for n, p in model.parameters_by_name().items() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.allclose(gradients[0][n], gradients[1][n], atol=1e-7) for n in gradients[0])


@pytest.mark.parametrize("norm", ["relative", "absolute"])
@pytest.mark.parametrize("head", ["language", "class"])
def test_the_attack_raises_the_loss_of_samples(opener, head, norm):
    model, technique = opener(head=head), Fgm(eps=0.02, norm=norm)
    weights = {n: p.detach().clone() for n, p in model.parameters_by_name().items()}
    for seed in range(10):
        batch = random_batch((7, 5, 9, 12), seed=seed)
        forward = forward_pass(model, batch, technique)
        term = technique.terms(forward, batch)["fgm"]
        assert term.unit == forward.unit and term.count == forward.count
        assert term.sum.item() > forward.losses.cross_entropy.item()
    effect = technique.effect()
    assert effect.passed and effect.value >= 0.95 and "40 samples" in effect.detail
    assert all(torch.equal(weights[n], p) for n, p in model.parameters_by_name().items())


def test_a_wrong_sign_fails_the_proof(opener, monkeypatch):
    model, technique, batch = opener(), Fgm(eps=0.02), random_batch()
    right = Fgm.attack
    monkeypatch.setattr(Fgm, "attack", lambda self, *arguments: -right(self, *arguments))
    technique.terms(forward_pass(model, batch, technique), batch)
    assert not technique.effect().passed


def test_the_attack_on_a_sample_does_not_depend_on_its_neighbours(opener):
    model, technique, samples = opener(), Fgm(eps=0.1), random_samples((6, 9, 5))
    together = pack(samples, device="cpu", progress=Progress(), seed=0)
    terms = technique.terms(forward_pass(model, together, technique), together)["fgm"].sum.item()
    alone = 0.0
    for sample in samples:
        batch = pack([sample], device="cpu", progress=Progress(), seed=0)
        alone += technique.terms(forward_pass(model, batch, technique), batch)["fgm"].sum.item()
    assert terms == pytest.approx(alone, rel=1e-6)


def test_both_passes_see_the_same_dropout(tmp_path):
    from uplift.testing.passes import open_tiny
    from uplift.testing.tiny import tiny_encoder

    model = open_tiny(tiny_encoder(tmp_path / "encoder", hidden_dropout_prob=0.3), "class").train()
    technique, batch = Fgm(eps=0.0), random_batch()
    first = forward_pass(model, batch, technique)
    term = technique.terms(first, batch)["fgm"]
    assert term.sum.item() == first.losses.cross_entropy.item()
    state = torch.get_rng_state()
    technique.terms(first, batch)
    assert torch.equal(state, torch.get_rng_state())
    assert forward_pass(model, batch, technique).losses.cross_entropy.item() != first.losses.cross_entropy.item()


# -- NEFTune -----------------------------------------------------------------------------------------------------------
def test_noise_keeps_its_bound_and_its_expected_norm(opener):
    lengths, alpha = (7, 50, 200), 5.0
    technique, batch = Neftune(alpha=alpha), random_batch(lengths)
    noise = technique.noise(batch, 32)[0]
    start = 0
    for length in lengths:
        part = noise[start : start + length]
        bound = noise_bound(alpha, length, 32)
        assert bound == pytest.approx(alpha / math.sqrt(length * 32))
        assert 0.8 * bound < part.abs().max() <= bound
        assert part.norm().item() == pytest.approx(expected_norm(alpha), rel=0.15)
        start += length
    embeddings = torch.zeros(1, sum(lengths), 32)
    assert torch.equal(technique.embed(embeddings, batch)[0], noise)
    assert technique.effect().passed and technique.effect().value == pytest.approx(1.0, abs=0.1)


def test_noise_depends_on_step_and_sample_but_not_on_packing():
    technique, samples = Neftune(), random_samples((6, 9, 5))
    batches = [pack(part, device="cpu", progress=Progress(step=4), seed=0) for part in (samples, samples[:1], samples[1:])]
    together, first, rest = (technique.noise(batch, 16) for batch in batches)
    assert torch.equal(together, torch.cat([first, rest], dim=1))
    later = pack(samples, device="cpu", progress=Progress(step=5), seed=0)
    assert not torch.equal(together, technique.noise(later, 16))


def test_no_noise_is_the_same_tensor():
    technique, embeddings = Neftune(alpha=0.0), torch.randn(1, 21, 8)
    assert technique.embed(embeddings, random_batch()) is embeddings
    assert not technique.effect().passed


def test_evaluation_sees_no_noise(opener):
    model, batch = opener(), random_batch()
    assert torch.equal(outputs(model, batch), outputs(model, batch))
