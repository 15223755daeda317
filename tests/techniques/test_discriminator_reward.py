"""A judge's rewards: the policy gradient against its definition, the placebos, and who learns from what."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from uplift.core.values import Encoded, Progress
from uplift.data.chat import Encoder
from uplift.techniques import on_policy
from uplift.techniques.adversarial.discriminator_reward import DiscriminatorReward, Judge, leave_one_out, rewarded
from uplift.testing.passes import forward_pass, random_batch
from uplift.testing.tiny import tiny_recipe
from uplift.testing.training import differences, train, train_in_two_parts


def begun(model: Any, **options: Any) -> DiscriminatorReward:
    """The technique, ready to be asked for its terms."""
    technique = DiscriminatorReward.model_validate({"share": 1.0, "max_new_tokens": 5, **options})
    technique.edit(model)
    technique.begin(model, dict(model.parameters_by_name()))
    return technique


def gradients_of(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.parameters_by_name().items() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def test_the_baseline_leaves_its_own_answer_out() -> None:
    rewards = torch.rand(7, 4, generator=torch.Generator().manual_seed(0))
    found = leave_one_out(rewards)
    for prompt, answer in ((0, 0), (3, 2), (6, 3)):
        others = [float(rewards[prompt, k]) for k in range(4) if k != answer]
        assert float(found[prompt, answer]) == pytest.approx(float(rewards[prompt, answer]) - sum(others) / 3, abs=1e-6)
    torch.testing.assert_close(found.sum(1), torch.zeros(7), atol=1e-6, rtol=0)
    assert float(leave_one_out(torch.full((3, 5), 0.5)).abs().max()) == 0.0


def test_the_loss_is_the_log_probability_that_a_plain_forward_gives(opener) -> None:
    model, batch = opener(), random_batch()
    written = [Encoded("a", [5, 6, 7, 8], [0.0, 0.0, 1.0, 1.0]), Encoded("b", [9, 4, 3], [0.0, 1.0, 1.0])]
    advantages = torch.tensor([0.25, -0.75])
    rewarded(model, written, advantages, batch).backward()
    found = gradients_of(model)
    expected = torch.zeros(())
    for each, advantage in zip(written, advantages, strict=True):
        logs = model.pretrained(input_ids=torch.tensor([each.ids])).logits[0].log_softmax(-1)
        picked = [logs[place - 1, each.ids[place]] for place in range(len(each.ids)) if each.weights[place]]
        expected = expected - advantage * torch.stack(picked).sum()
    expected.backward()
    for name, gradient in gradients_of(model).items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)


def test_the_estimate_is_unbiased(opener) -> None:
    """One word, rewarded if it is among the first half of the vocabulary: the gradient of its chance, within its noise."""
    model, batch = opener(), random_batch((4,))
    prompt = batch.ids[0, :2].tolist()
    weights = [0.0] + [1.0 / 2] * 2 + [0.0]
    batch = replace(batch, weights=torch.tensor([weights]))
    half = model.head_weight.shape[0] // 2
    norm = model.pretrained.model.norm.weight
    chances = model.pretrained(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1)
    (exact,) = torch.autograd.grad(-chances[:half].sum(), norm)
    draws = []
    for step in range(60):
        written = on_policy.own_answers(model, replace(batch, progress=Progress(step=step)), [0], frozenset(), 1, 16)
        assert all(list(each.ids[:2]) == prompt for each in written)
        rewards = torch.tensor([[float(each.ids[-1] < half) for each in written]])
        (found,) = torch.autograd.grad(rewarded(model, written, leave_one_out(rewards).flatten(), batch) / 16, norm)
        draws.append(found)
    mean, error = torch.stack(draws).mean(0), torch.stack(draws).std(0) / len(draws) ** 0.5
    scores = (mean - exact) / error.clamp_min(1e-12)
    assert float(scores.abs().max()) < 4.5 and 0.3 < float(scores.square().mean()) < 2.5
    assert float(exact.abs().max()) > 3 * float(error.mean()), "the gradient stands out of its noise"


def test_a_constant_reward_teaches_nothing_and_a_shuffled_one_only_changes_places(opener) -> None:
    model, batch = opener(), random_batch((9, 7, 8))
    losses = {}
    for reward in ("constant", "judge", "shuffled"):
        technique = begun(model, reward=reward)
        given = technique._rewards([[k] for k in range(12)], batch, [0, 1, 2])
        terms = technique.terms(forward_pass(model, batch), batch)
        terms["discriminator_reward"].sum.backward()
        losses[reward] = gradients_of(model), given
    assert all(float(gradient.abs().max()) == 0.0 for gradient in losses["constant"][0].values())
    assert any(float(gradient.abs().max()) > 0.0 for gradient in losses["judge"][0].values())
    judged, shuffled = losses["judge"][1], losses["shuffled"][1]
    assert not torch.equal(judged, shuffled) and torch.equal(judged.sort(1).values, shuffled.sort(1).values)


def test_the_judge_learns_from_its_own_loss_alone_and_tells_the_sides_apart(opener) -> None:
    model, batch = opener(), random_batch((9, 7, 8, 6))
    technique = begun(model, judge_lr=1e-2, answers=2)
    for step in range(30):
        at = replace(batch, progress=Progress(step=step))
        terms = technique.terms(forward_pass(model, at), at)
        technique._judge.zero_grad(set_to_none=True)
        terms["discriminator_reward"].sum.backward()
        assert all(p.grad is None for p in technique._judge.parameters())
        before = {name: value.clone() for name, value in model.state_dict().items()}
        model.zero_grad(set_to_none=True)
        technique.observe(at.progress, {"loss": 1.0})
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())
    rows = [technique._row_answer(batch, place) for place in range(4)]
    ends = Encoder(model.tokenizer, 64, "causal").end_ids
    own = [
        list(each.ids)[each.weights.index(1.0) :]
        for each in on_policy.own_answers(model, replace(batch, progress=Progress(step=99)), range(4), ends, 5, 2)
    ]
    with torch.no_grad():
        scores = [technique._judge(answers, technique._vectors) for answers in (rows, own)]
    assert float(scores[0].mean()) > 1.0 > -1.0 > float(scores[1].mean())
    assert technique.effect().passed and technique.effect().value > 0.6


def test_the_judge_sees_no_padding() -> None:
    judge, vectors = Judge(8, 4), torch.randn(20, 8)
    answers = [[3, 4, 5], [6], [7, 8, 9, 10, 11]]
    together = judge(answers, vectors)
    alone = torch.cat([judge([answer], vectors) for answer in answers])
    torch.testing.assert_close(together, alone)


def test_the_rows_answer_is_as_long_as_the_models_may_be(opener) -> None:
    batch = random_batch((9,))
    batch.weights[0] = torch.tensor([0.0, 0, 1, 1, 1, 1, 0, 0, 0])
    expected = batch.targets[0, 2:6].tolist()
    model = opener()
    assert begun(model, max_new_tokens=3)._row_answer(batch, 0) == expected[:3]
    assert begun(model, max_new_tokens=9)._row_answer(batch, 0) == expected


def test_a_run_continues_bit_for_bit(tmp_path) -> None:
    options = {"use": "discriminator_reward", "share": 0.5, "max_new_tokens": 6, "answers": 2}
    recipe = tiny_recipe(tmp_path, "chat", rows=48, techniques=[options], train={"steps": 4, "save_every": 2})
    whole = train(recipe, tmp_path / "whole")
    assert whole.techniques[0].effect().passed, whole.techniques[0].effect()
    again = train_in_two_parts(recipe, tmp_path / "parts", 3)
    assert not differences(whole, again) and whole.techniques[0].effect() == again.techniques[0].effect()
