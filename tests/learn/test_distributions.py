"""Divergences and entropies in chunks: equal to the formulas on full logits, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from uplift.learn import distributions
from uplift.learn.distributions import Predictions, entropy, kl_divergence, symmetric_divergence


def _heads(softcap: float | None, scale: float) -> tuple[list[Tensor], Predictions, Predictions, Tensor]:
    torch.manual_seed(0)
    leaves = [torch.randn(23, 8, requires_grad=True), torch.randn(23, 8, requires_grad=True)]
    leaves += [torch.randn(50, 8, requires_grad=True), torch.randn(50, requires_grad=True)]
    h1, h2, weight, bias = leaves
    return leaves, Predictions(h1, weight, bias, scale, softcap), Predictions(h2, weight, bias, scale, softcap), torch.rand(23)


def _full(p: Predictions) -> Tensor:
    assert p.hidden is not None and p.weight is not None
    z = (p.hidden @ p.weight.T + (0.0 if p.bias is None else p.bias)) * p.scale
    return (z if p.softcap is None else p.softcap * torch.tanh(z / p.softcap)).log_softmax(-1)


@pytest.mark.parametrize(("softcap", "scale"), [(None, 1.0), (5.0, 0.5)])
@pytest.mark.parametrize("what", ["kl", "symmetric", "entropy"])
def test_chunks_equal_the_formula(what: str, softcap: float | None, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributions, "chunk_rows", lambda weight: 7)
    leaves, p, q, w = _heads(softcap, scale)
    lp, lq = _full(p), _full(q)
    kl = torch.nn.functional.kl_div(lq, lp, log_target=True, reduction="none").sum(-1)
    back = torch.nn.functional.kl_div(lp, lq, log_target=True, reduction="none").sum(-1)
    expected = {"kl": kl, "symmetric": kl + back, "entropy": -(lp.exp() * lp).sum(-1)}[what] @ w
    made = {
        "kl": lambda: kl_divergence(p, q, w),
        "symmetric": lambda: symmetric_divergence(p, q, w),
        "entropy": lambda: entropy(p, w),
    }[what]()
    torch.testing.assert_close(made, expected)
    wanted = torch.autograd.grad(expected, leaves, allow_unused=True)
    found = torch.autograd.grad(made, leaves, allow_unused=True)
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_equal_predictions_do_not_differ_and_constants_get_no_gradient() -> None:
    (h1, *_), p, _, w = _heads(None, 1.0)
    assert float(kl_divergence(p, p, w).detach()) == 0.0
    logits = torch.randn(23, 3, requires_grad=True)
    made = kl_divergence(Predictions(logits=torch.randn(23, 3)), Predictions(logits=logits), w)
    made.backward()
    assert logits.grad is not None and float(logits.grad.abs().sum()) > 0
    assert not p.detached().hidden.requires_grad  # type: ignore[union-attr]
    assert h1.requires_grad


def test_different_numbers_of_units_are_refused() -> None:
    _, p, _, w = _heads(None, 1.0)
    with pytest.raises(ValueError, match="cannot be compared"):
        kl_divergence(p, Predictions(logits=torch.randn(4, 50)), w)
