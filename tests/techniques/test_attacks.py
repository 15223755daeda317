from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from uplift.core.capability import Capabilities, find_clashes
from uplift.core.technique import Technique
from uplift.core.values import Batch, Progress
from uplift.data.packing import pack
from uplift.learn.forward import ForwardPass
from uplift.learn.learner import TASK, Learner
from uplift.techniques.adversarial.fgm import Fgm
from uplift.techniques.adversarial.freelb import START, Freelb
from uplift.techniques.adversarial.neftune import Neftune
from uplift.techniques.adversarial.pgd import Pgd
from uplift.techniques.adversarial.random_noise import RandomNoise
from uplift.techniques.adversarial.smart import Smart
from uplift.techniques.adversarial.virtual_adversarial import VirtualAdversarial
from uplift.techniques.perturbation import norms_of_samples, perturbation, project, random_direction
from uplift.testing.passes import forward_pass, open_tiny, random_batch, random_samples, train_steps
from uplift.testing.tiny import tiny_causal, tiny_encoder

LOSS_ATTACKS = [Fgm, Pgd, Freelb]
ALL: list[Any] = [Fgm, Pgd, Freelb, RandomNoise, VirtualAdversarial, Smart]
HEADS = ["language", "class"]


def step(model: Any, technique: Technique | None, batch: Batch) -> dict[str, Tensor]:
    """Gradients of one step through the learner, by name."""
    learner = Learner(model, [technique] if technique else []).train()
    terms = learner(batch)
    model.zero_grad()
    (sum(term.sum / term.count for term in terms.values())).backward()
    return {name: p.grad.clone() for name, p in model.parameters_by_name().items() if p.grad is not None}


def near(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float = 1e-6) -> bool:
    assert first.keys() == second.keys()
    size = sum(float(value.pow(2).sum()) for value in first.values()) ** 0.5
    between = sum(float((first[name] - second[name]).pow(2).sum()) for name in first) ** 0.5
    return between <= tolerance * size


def record(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Embeddings of every further pass, less those of the first."""
    changes: list[Tensor] = []
    original = ForwardPass.rerun

    def rerun(self: ForwardPass, embeddings: Tensor) -> ForwardPass:
        changes.append((embeddings - self.embeddings).detach())
        return original(self, embeddings)

    monkeypatch.setattr(ForwardPass, "rerun", rerun)
    return changes


# -- the parts ---------------------------------------------------------------------------------------------------------
def test_projection_moves_only_what_is_outside_and_no_further_than_the_ball():
    lengths, values = (4, 1, 6), torch.randn(1, 11, 8)
    norms = norms_of_samples(values, lengths)
    sizes = norms * torch.tensor([0.5, 1.0, 2.0])
    found = project(values, sizes, lengths)
    assert torch.equal(found[0, 4:], values[0, 4:])
    assert torch.allclose(norms_of_samples(found, lengths), torch.minimum(norms, sizes), rtol=1e-6)
    assert torch.allclose(found[0, :4], 0.5 * values[0, :4])
    assert not project(values, torch.zeros(3), lengths).any()


def test_random_directions_depend_on_step_and_sample_but_not_on_packing():
    samples = random_samples((6, 9, 5))
    batches = [pack(part, device="cpu", progress=Progress(step=4), seed=0) for part in (samples, samples[:1], samples[1:])]
    together, first, rest = (random_direction(batch, "x", 16) for batch in batches)
    assert torch.equal(together, torch.cat([first, rest], dim=1))
    later = pack(samples, device="cpu", progress=Progress(step=5), seed=0)
    assert not torch.equal(together, random_direction(later, "x", 16))
    assert not torch.equal(together, random_direction(batches[0], "y", 16))


# -- one backward pass for embeddings and weights --------------------------------------------------------------------------
@pytest.mark.parametrize("head", HEADS)
def test_a_loss_that_carries_its_gradients_has_the_same_gradients(opener, head):
    model, batch = opener(head=head), random_batch()
    plain = forward_pass(model, batch)
    (expected,) = torch.autograd.grad(plain.losses.cross_entropy, plain.embeddings, retain_graph=True)
    (0.25 * plain.losses.cross_entropy).backward()
    gradients = {n: p.grad.clone() for n, p in model.parameters_by_name().items()}
    model.zero_grad()
    forward = forward_pass(model, batch)
    value = forward.losses.cross_entropy.item()
    assert torch.equal(forward.embedding_gradient, expected)
    assert forward.losses.cross_entropy.item() == value
    (0.25 * forward.losses.cross_entropy).backward()
    found = {n: p.grad for n, p in model.parameters_by_name().items()}
    assert all(torch.equal(gradients[n], found[n]) for n in gradients)  # a power of two scales without rounding


def test_the_clean_pass_is_walked_once(opener):
    model, batch, technique, walked = opener(), random_batch(), Fgm(eps=0.1), []
    forward = forward_pass(model, batch, technique)
    forward.hidden.register_hook(lambda gradient: walked.append(1))
    term = technique.terms(forward, batch)["fgm"].sum
    (forward.losses.cross_entropy + term).backward()
    assert len(walked) == 1
    below = [node.name() for node, _ in forward.losses.cross_entropy.grad_fn.next_functions if node is not None]
    assert len(below) == len(model.parameters_by_name()) and all(name.endswith("AccumulateGrad") for name in below)


def test_a_frozen_pass_has_the_same_embedding_gradient_and_leaves_what_trains(opener):
    model, batch = opener(), random_batch()
    named = model.parameters_by_name()
    next(iter(named.values())).requires_grad_(False)
    trained = {n for n, p in named.items() if p.requires_grad}
    forward = forward_pass(model, batch)
    expected = forward.embedding_gradient
    with forward.frozen():
        again = forward.rerun(forward.embeddings.detach().requires_grad_(True))
        assert torch.equal(again.embedding_gradient, expected)
        assert not any(p.requires_grad for p in named.values()) and not again.losses.cross_entropy.requires_grad
    assert trained == {n for n, p in named.items() if p.requires_grad}
    with pytest.raises(ValueError), forward.frozen():
        raise ValueError
    assert trained == {n for n, p in named.items() if p.requires_grad}


# -- all of them -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", [Fgm, Pgd, RandomNoise])
def test_without_size_the_gradients_are_twice_the_clean_ones(opener, kind, head):
    batch = random_batch()
    clean, attacked = step(opener(head=head), None, batch), step(opener(head=head), kind(eps=0.0), batch)
    assert near({n: 2.0 * g for n, g in clean.items()}, attacked)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("technique", [VirtualAdversarial(eps=0.0), Smart(eps=0.0), Smart(weight=0.0), Freelb(weight=0.0)])
def test_smoothness_without_size_is_the_clean_step_bit_for_bit(opener, technique, head):
    batch = random_batch()
    clean, attacked = step(opener(head=head), None, batch), step(opener(head=head), technique, batch)
    assert all(torch.equal(clean[n], attacked[n]) for n in clean) and clean.keys() == attacked.keys()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("norm", ["relative", "absolute"])
@pytest.mark.parametrize("kind", ALL)
def test_no_change_is_larger_than_its_bound_and_the_weights_stay(opener, monkeypatch, kind, norm, head):
    model, batch, changes = opener(head=head), random_batch((7, 5, 9, 12)), record(monkeypatch)
    weights = {n: p.detach().clone() for n, p in model.parameters_by_name().items()}
    technique = kind(eps=0.1, norm=norm, **({"steps": 4} if kind in (Pgd, Smart, VirtualAdversarial) else {}))
    forward = forward_pass(model, batch, technique)
    technique.terms(forward, batch)
    sizes = technique.sizes(forward.embeddings, batch.lengths)
    if norm == "relative":
        assert torch.allclose(sizes, 0.1 * norms_of_samples(forward.embeddings, batch.lengths))
    assert changes
    for change in changes:
        assert bool((norms_of_samples(change, batch.lengths) <= sizes * (1 + 1e-5)).all())
    assert all(torch.equal(weights[n], p) for n, p in model.parameters_by_name().items())


@pytest.mark.parametrize("kind", ALL)
def test_a_change_does_not_depend_on_the_neighbours_in_the_row(opener, monkeypatch, kind):
    model, samples, changes, technique = opener(), random_samples((6, 9, 5)), record(monkeypatch), kind(eps=0.1)
    for part in (samples, *([sample] for sample in samples)):
        batch = pack(part, device="cpu", progress=Progress(step=2), seed=3)
        technique.terms(forward_pass(model, batch, technique), batch)
    passes = len(changes) // 4
    for number in range(passes):
        together, *alone = changes[number::passes]
        assert torch.allclose(together, torch.cat(alone, dim=1), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ALL)
def test_every_pass_sees_the_dropout_of_the_first(tmp_path, kind):
    model = open_tiny(tiny_encoder(tmp_path / "encoder", hidden_dropout_prob=0.3, classifier_dropout=0.3), "class").train()
    technique, batch = kind(eps=0.1, weight=0.5), random_batch()
    forward = forward_pass(model, batch, technique)
    value = forward.losses.cross_entropy.item()
    assert technique.again(forward, forward.embeddings).losses.cross_entropy.item() == value
    state = torch.get_rng_state()
    technique.terms(forward, batch)
    assert torch.equal(state, torch.get_rng_state())
    assert forward_pass(model, batch, technique).losses.cross_entropy.item() != value


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", LOSS_ATTACKS)
def test_attacks_raise_the_loss_of_samples(opener, kind, head):
    model, technique = opener(head=head), kind(eps=0.02)
    for seed in range(10):
        batch = random_batch((7, 5, 9, 12), seed=seed)
        technique.terms(forward_pass(model, batch, technique), batch)
    effect = technique.effect()
    assert effect.passed and effect.value >= 0.95 and "40 samples" in effect.detail


@pytest.mark.parametrize("kind", LOSS_ATTACKS)
def test_a_wrong_sign_fails_the_proof(opener, monkeypatch, kind):
    module = f"uplift.techniques.adversarial.{kind.__name__.lower()}.perturbation"
    monkeypatch.setattr(module, lambda gradient, *rest: -perturbation(gradient, *rest))
    model, technique, batch = opener(), kind(eps=0.02), random_batch()
    technique.terms(forward_pass(model, batch, technique), batch)
    assert not technique.effect().passed


@pytest.mark.parametrize("kind", [VirtualAdversarial, Smart])
def test_noise_in_place_of_the_attack_fails_the_proof(opener, monkeypatch, kind):
    def noise(self: Any, delta: Tensor, gradient: Tensor, size: Tensor, lengths: tuple[int, ...]) -> Tensor:
        return perturbation(torch.randn(delta.shape, generator=torch.Generator().manual_seed(5)), size, lengths)

    model, wrong, right = opener(), kind(eps=0.02), kind(eps=0.02)
    for technique, advance in ((right, kind.advance), (wrong, noise)):
        monkeypatch.setattr(kind, "advance", advance)
        for seed in range(5):
            batch = random_batch((7, 5, 9, 12), seed=seed)
            technique.terms(forward_pass(model, batch, technique), batch)
    assert right.effect().passed and not wrong.effect().passed
    assert wrong.effect().value == pytest.approx(1.0, abs=0.4)


@pytest.mark.parametrize("kind", [*ALL, Neftune])
def test_changed_embeddings_are_refused_where_the_model_trains_on_its_own_samples(kind):
    declared = [
        ("techniques[0]", "attack", kind().declare()),
        ("techniques[1]", "policy", Capabilities(gives=frozenset({"on_policy"}))),
    ]
    (clash,) = find_clashes(declared, frozenset({"training"}))
    assert "own samples" in clash.why and clash.fix


# -- each --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("head", HEADS)
def test_fgm_is_the_sum_of_the_clean_and_the_attacked_step(opener, head):
    model, batch, technique = opener(head=head), random_batch(), Fgm(eps=0.1, weight=0.5)
    forward = forward_pass(model, batch, technique)
    (gradient,) = torch.autograd.grad(forward.losses.cross_entropy, forward.embeddings, retain_graph=True)
    delta = technique.attack(gradient, forward.embeddings.detach(), batch.lengths)
    loss = forward.losses.cross_entropy + 0.5 * forward.rerun(forward.embeddings + delta).losses.cross_entropy
    (loss / forward.count).backward()
    expected = {n: p.grad.clone() for n, p in model.parameters_by_name().items()}
    assert near(expected, step(model, technique, batch))


@pytest.mark.parametrize("head", HEADS)
def test_pgd_of_one_full_step_is_fgm(opener, head):
    batch, one, other = random_batch(), opener(head=head), opener(head=head)
    first, second = step(one, Fgm(eps=0.1), batch), step(other, Pgd(eps=0.1, steps=1, alpha=1.0), batch)
    assert all(torch.equal(first[n], second[n]) for n in first)


def test_more_steps_find_worse_points(opener):
    model, batch = opener(), random_batch((7, 5, 9, 12))
    losses = []
    for technique in (Fgm(eps=0.3), Pgd(eps=0.3, steps=8, alpha=0.3)):
        losses.append(technique.terms(forward_pass(model, batch, technique), batch)[technique.use].sum.item())
    assert losses[1] > losses[0]


def test_the_search_of_pgd_follows_the_loss_at_the_point_before(opener):
    model, batch, technique = opener(), random_batch(), Pgd(eps=0.1, steps=2, alpha=0.7)
    forward = forward_pass(model, batch, technique)
    sizes, lengths = technique.sizes(forward.embeddings, batch.lengths), batch.lengths
    (gradient,) = torch.autograd.grad(forward.losses.cross_entropy, forward.embeddings, retain_graph=True)
    delta = perturbation(gradient, 0.7 * sizes, lengths)
    point = (forward.embeddings + delta).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(forward.rerun(point).losses.cross_entropy, point)
    expected = project(delta + perturbation(gradient, 0.7 * sizes, lengths), sizes, lengths)
    assert torch.allclose(technique.attack(forward, lengths), expected, atol=1e-7)


@pytest.mark.parametrize("head", HEADS)
def test_freelb_of_one_pass_from_the_sample_itself_is_the_clean_step(opener, head):
    batch, technique = random_batch(), Freelb(passes=1, start="zero")
    clean, found = step(opener(head=head), None, batch), step(opener(head=head), technique, batch)
    assert all(torch.equal(clean[n], found[n]) for n in clean)
    assert not technique.effect().passed


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("start", ["random", "zero"])
def test_freelb_is_the_mean_gradient_of_its_points(opener, monkeypatch, start, head):
    model, batch, technique = opener(head=head), random_batch(), Freelb(eps=0.1, passes=3, start=start)
    changes = record(monkeypatch)
    found = step(model, technique, batch)
    points = ([torch.zeros_like(changes[0])] if start == "zero" else []) + changes
    monkeypatch.undo()
    assert len(points) == 3
    model.zero_grad()
    forward = forward_pass(model, batch)
    for point in points:
        (forward.rerun(forward.embeddings + point).losses.cross_entropy / forward.count / 3).backward(retain_graph=True)
    assert near({n: p.grad for n, p in model.parameters_by_name().items()}, found)
    if start == "random":
        sizes = technique.sizes(forward.embeddings, batch.lengths)
        assert torch.allclose(norms_of_samples(points[0], batch.lengths), START * sizes, rtol=1e-5)


def test_noise_has_exactly_the_norm_of_fgm_and_another_direction(opener, monkeypatch):
    model, batch, changes = opener(), random_batch((7, 5, 9, 12)), record(monkeypatch)
    for technique in (Fgm(eps=0.1), RandomNoise(eps=0.1)):
        technique.terms(forward_pass(model, batch, technique), batch)
    attack, noise = (norms_of_samples(change, batch.lengths) for change in changes)
    assert torch.allclose(attack, noise, rtol=1e-5)
    assert abs(torch.nn.functional.cosine_similarity(changes[0].flatten(), changes[1].flatten(), dim=0).item()) < 0.3
    assert technique.effect().passed and technique.effect().value == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("head", HEADS)
def test_virtual_adversarial_holds_the_clean_predictions_constant(opener, head):
    model, batch, technique = opener(head=head), random_batch(), VirtualAdversarial(eps=0.1)
    forward = forward_pass(model, batch, technique)
    assert forward.divergence(technique.again(forward, forward.embeddings), fixed=True).item() == 0.0
    term = technique.terms(forward, batch)["virtual_adversarial"]
    assert term.sum.item() > 0 and term.unit == forward.unit and term.count == forward.count
    # Labels have no say.
    other = random_batch()
    other.targets = torch.where(other.targets >= 0, (other.targets + 7) % 100, other.targets)
    other.labels = 1 - other.labels
    assert technique.terms(forward_pass(model, other, technique), other)["virtual_adversarial"].sum.item() == term.sum.item()


def test_smart_reaches_both_sides(opener):
    model, batch, technique = opener(), random_batch(), Smart(eps=0.1)
    forward = forward_pass(model, batch, technique)
    technique.terms(forward, batch)["smart"].sum.backward()
    both = model.parameters_by_name()["model.layers.0.self_attn.q_proj.weight"].grad.clone()
    model.zero_grad()
    forward = forward_pass(model, batch, technique)
    attacked, _ = technique.divergence_near(forward, batch)
    forward.divergence(attacked, symmetric=True, fixed=True).backward()
    assert not torch.allclose(both, model.parameters_by_name()["model.layers.0.self_attn.q_proj.weight"].grad, rtol=1e-2)


def test_the_teacher_is_an_average_of_the_weights(opener):
    model, technique = opener(), Smart(weight=0.0, proximal=1.0, momentum=0.5)
    start = {n: p.detach().clone() for n, p in model.parameters_by_name().items()}
    batch, expected = random_batch(), start
    technique.begin(model, model.parameters_by_name())
    first = technique.terms(forward_pass(model, batch, technique), batch)["smart_proximal"]
    assert first.sum.item() == 0.0
    for number in range(2):
        with torch.no_grad():
            for parameter in model.parameters_by_name().values():
                parameter.add_(0.1 * torch.randn_like(parameter))
        technique.after_update(model.parameters_by_name(), Progress(step=number), 0.1)
        expected = {n: 0.5 * expected[n] + 0.5 * p.detach() for n, p in model.parameters_by_name().items()}
    teacher = technique._teacher.parameters_by_name()
    assert all(torch.allclose(expected[n], teacher[n], atol=1e-6) for n in expected)
    assert technique.terms(forward_pass(model, batch, technique), batch)["smart_proximal"].sum.item() > 0
    assert technique.effect().passed


def test_a_teacher_survives_a_restart(opener):
    batch, model = random_batch(), opener()
    technique = Smart(weight=0.0, proximal=1.0)
    parameters = train_steps(model, technique, batch)
    again = technique.fresh()
    again.begin(model, parameters)
    again.load_state(technique.state())
    first, second = (t._teacher.parameters_by_name() for t in (technique, again))
    assert all(torch.equal(first[n], second[n]) for n in first) and again.state()["away"] == technique.state()["away"]


def test_attacks_leave_a_tied_head_alone(tmp_path):
    model = open_tiny(tiny_causal(tmp_path / "tied", tie_word_embeddings=True))
    batch, technique = random_batch(), Pgd(eps=0.1)
    before = model.head_weight.detach().clone()
    step(model, technique, batch)
    assert torch.equal(before, model.head_weight)


@pytest.mark.parametrize("kinds", [(Fgm, Pgd), (Freelb, Fgm), (Smart, Freelb)])
def test_two_attacks_together_are_the_sum_of_both(opener, kinds):
    batch, model = random_batch(), opener()
    clean = step(opener(), None, batch)
    alone = [step(opener(), kind(eps=0.1), batch) for kind in kinds]
    learner = Learner(model, [kind(eps=0.1) for kind in kinds]).train()
    terms = learner(batch)
    assert set(terms) == {TASK, *(kind.model_fields["use"].default for kind in kinds)}
    (sum(term.sum / term.count for term in terms.values())).backward()
    together = {n: p.grad for n, p in model.parameters_by_name().items()}
    assert near({n: alone[0][n] + alone[1][n] - clean[n] for n in clean}, together, 1e-5)
