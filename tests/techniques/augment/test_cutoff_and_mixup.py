"""Blanked and blended embeddings: exact counts, exact zeros, the loss by hand, and no dependence on how a step is cut."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from uplift.core.values import Corpus, Origin, Progress, Sample
from uplift.data.packing import pack
from uplift.learn.distributions import Predictions, jensen_shannon
from uplift.learn.forward import ForwardPass
from uplift.techniques.augment import mixup as module
from uplift.techniques.augment.cutoff import Cutoff, kept_part
from uplift.techniques.augment.mixup import Mixup, blended, share_drawn
from uplift.testing.passes import forward_pass, open_tiny, random_batch, random_samples
from uplift.testing.tiny import tiny_causal, tiny_encoder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {"causal": tiny_causal(root / "causal"), "encoder": tiny_encoder(root / "encoder")}


# -- the divergence ----------------------------------------------------------------------------------------------------
def test_jensen_shannon_of_equal_predictions_is_exactly_zero():
    logits = torch.randn(40, 7) * 5
    same = jensen_shannon(Predictions(logits=logits), Predictions(logits=logits.clone()), torch.rand(40))
    assert same.item() == 0.0


def test_jensen_shannon_is_symmetric_and_at_most_ln_2():
    one, other = (Predictions(logits=torch.randn(30, 5, dtype=torch.float64) * 3) for _ in range(2))
    weights = torch.rand(30, dtype=torch.float64)
    there, back = jensen_shannon(one, other, weights), jensen_shannon(other, one, weights)
    assert there.item() == pytest.approx(back.item(), rel=1e-12) and 0 < there.item() < math.log(2) * weights.sum().item()
    p, q = (each.log_probabilities(slice(None)).exp() for each in (one, other))
    m = (p + q) / 2
    by_hand = 0.5 * ((p * (p / m).log()).sum(1) + (q * (q / m).log()).sum(1)) @ weights
    assert there.item() == pytest.approx(by_hand.item(), rel=1e-10)
    apart = [Predictions(logits=torch.tensor([[200.0, -200.0]]) * sign) for sign in (1, -1)]
    assert jensen_shannon(*apart, torch.ones(1)).item() == pytest.approx(math.log(2), rel=1e-6)


def test_its_gradient_is_that_of_the_formula():
    a, b = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def value(x, y):
        return jensen_shannon(Predictions(logits=x), Predictions(logits=y), torch.ones(3, dtype=torch.float64))

    assert torch.autograd.gradcheck(value, (a, b))


# -- cutoff ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["token", "span", "feature"])
@pytest.mark.parametrize("share", [0.0, 0.15, 0.5, 0.9])
def test_exactly_the_share_is_blanked(kind, share):
    free = torch.ones(20, dtype=torch.bool)
    free[15:] = False
    kept = kept_part(kind, share, free, 32, torch.Generator().manual_seed(1)).expand(20, 32)
    assert not (kept[15:] == 0).any()
    if kind == "feature":
        assert (kept[0] == 0).sum() == round(share * 32) and torch.equal(kept[0].expand(15, 32), kept[:15])
        return
    blank = torch.nonzero(kept[:, 0] == 0)[:, 0]
    assert len(blank) == round(share * 15) and torch.equal(kept, kept[:, :1].expand(20, 32))
    if kind == "span" and len(blank):
        assert blank.tolist() == list(range(int(blank[0]), int(blank[0]) + len(blank)))


def test_answers_are_not_blanked_and_a_sample_does_not_depend_on_its_neighbours(folders):
    samples = [replace(each, weights=[0.0] * (len(each.ids) - 3) + [1.0] * 3) for each in random_samples((12, 9, 15))]
    technique = Cutoff(share=0.6, kind="token")

    def kept(items):
        return technique.kept(pack(items, device="cpu", progress=Progress(step=5), seed=3), 8)[0]

    whole = kept(samples).split([12, 9, 15])
    for sample, own in zip(samples, whole, strict=True):
        assert (own[-3:] == 1).all() and (own[:, 0] == 0).sum() == round(0.6 * (len(sample.ids) - 3))
        assert torch.equal(kept([sample]), own)
    text = [replace(each, weights=[0.0] + [1.0] * (len(each.ids) - 1)) for each in samples]
    assert all((own == 0).any() for own in kept(text).split([12, 9, 15])), "of plain text any token may be blanked"


@pytest.mark.parametrize(("kind", "head"), [("causal", "language"), ("causal", "class"), ("encoder", "class")])
def test_the_terms_are_those_of_a_pass_over_blanked_embeddings(folders, kind, head):
    model, batch = open_tiny(folders[kind], head), random_batch((9, 12, 7))
    forward, technique = forward_pass(model, batch), Cutoff(share=0.4, weight=0.7, consistency=3.0)
    found = technique.terms(forward, batch)
    cut = ForwardPass(model, batch, forward.embeddings * technique.kept(batch, 32))
    between = jensen_shannon(forward.predictions, cut.predictions, forward.unit_weights)
    assert found["cutoff"].sum.item() == pytest.approx(0.7 * cut.losses.cross_entropy.item(), rel=1e-6)
    assert found["cutoff_divergence"].sum.item() == pytest.approx(3.0 * between.item(), rel=1e-5) and between > 0
    assert Cutoff(share=0.0).terms(forward, batch) == {}


# -- mixup -------------------------------------------------------------------------------------------------------------
def mixed(model, kind, **options):
    """The technique with a pool of four labelled rows, whose tokens are drawn at random."""
    technique, pool = Mixup(**options), random_samples((6, 11, 8, 10), seed=7)
    by_id = {each.id: each for each in pool}
    technique.meet(SimpleNamespace(encoder=SimpleNamespace(encode=lambda sample: by_id[sample.id])))
    rows = [Sample(each.id, Origin("rows", 1), text="x", label=each.label) for each in pool]
    technique.samples(Corpus(rows, "train"))
    technique.begin(model, {})
    return technique


def gradients(model, batch, technique):
    model.zero_grad()
    forward = ForwardPass(model, batch, technique.embed(model.embed(batch.ids), batch) if technique else model.embed(batch.ids))
    loss = forward.losses.cross_entropy
    for term in (technique.terms(forward, batch) if technique else {}).values():
        loss = loss + term.sum
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.parameters_by_name().items() if p.grad is not None}


@pytest.mark.parametrize("kind", ["causal", "encoder"])
def test_a_share_of_one_is_the_plain_loss_bit_for_bit(folders, kind, monkeypatch):
    monkeypatch.setattr(module, "share_drawn", lambda batch, index, alpha: 1.0)
    model, batch = open_tiny(folders[kind], "class"), random_batch((9, 12, 7))
    plain_loss, plain = gradients(model, batch, None)
    loss, found = gradients(model, batch, mixed(model, kind))
    assert torch.equal(loss, plain_loss)
    assert all(torch.equal(found[name], value) for name, value in plain.items()) and found.keys() == plain.keys()
    hidden_loss, _ = gradients(model, batch, mixed(model, kind, level="hidden"))
    assert torch.equal(hidden_loss, plain_loss)


@pytest.mark.parametrize("level", ["embedding", "hidden"])
@pytest.mark.parametrize("kind", ["causal", "encoder"])
def test_the_loss_is_that_of_blended_labels(folders, kind, level, monkeypatch):
    monkeypatch.setattr(module, "share_drawn", lambda batch, index, alpha: 0.7)
    model, batch = open_tiny(folders[kind], "class"), random_batch((9, 12, 7))
    technique = mixed(model, kind, level=level)
    forward = ForwardPass(model, batch, technique.embed(model.embed(batch.ids), batch))
    total = forward.losses.cross_entropy + technique.terms(forward, batch)["mixup"].sum
    others = technique._partners(batch)
    row = pack(others, device="cpu", progress=batch.progress, seed=batch.seed)
    own, other = model.embed(batch.ids)[0], model.embed(row.ids)[0]
    if level == "hidden":
        own, other = (ForwardPass(model, each, model.embed(each.ids)).hidden[0] for each in (batch, row))
    parts = zip(own.split([9, 12, 7]), other.split([len(each) for each in others]), strict=True)
    mix = torch.cat([blended(a, b, 0.7, kind == "causal") for a, b in parts])[None]
    hidden = mix if level == "hidden" else model.hidden(mix, batch.positions, batch.lengths)
    log_p = model.class_logits(hidden, batch.lengths).log_softmax(-1)
    labels = [(index % 2, each.label) for index, each in enumerate(others)]
    by_hand = -sum(0.7 * log_p[i, a] + 0.3 * log_p[i, b] for i, (a, b) in enumerate(labels))
    assert total.item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_partners_and_shares_do_not_depend_on_the_batch(folders):
    model, samples = open_tiny(folders["encoder"], "class"), random_samples((9, 12, 7))
    technique = mixed(model, "encoder")

    def embedded(items):
        batch = pack(items, device="cpu", progress=Progress(step=4), seed=2)
        return technique.embed(model.embed(batch.ids), batch)[0]

    whole = embedded(samples).split([9, 12, 7])
    for sample, own in zip(samples, whole, strict=True):
        assert torch.equal(embedded([sample]), own)
        assert not torch.equal(own, model.embed(torch.tensor([sample.ids]))[0])
    batch = random_batch((9, 12, 7))
    shares = [share_drawn(replace(batch, progress=Progress(step=step)), 0, 0.4) for step in range(400)]
    assert min(shares) >= 0.5 and len(set(shares)) == 400
    near = sum(share > 0.9 for share in shares) / 400
    assert 0.3 < near < 0.8, "a small alpha mostly gives one text"


def test_sequences_are_laid_together_where_the_head_looks():
    own, long, short = torch.full((3, 1), 10.0), torch.arange(1.0, 6.0)[:, None], torch.ones(1, 1)
    assert blended(own, long, 0.5, at_end=False)[:, 0].tolist() == [5.5, 6.0, 6.5]
    assert blended(own, long, 0.5, at_end=True)[:, 0].tolist() == [6.5, 7.0, 7.5]
    assert blended(own, short, 0.5, at_end=True)[:, 0].tolist() == [5.0, 5.0, 5.5]
    assert torch.equal(blended(own, long, 1.0, at_end=True), own)
