"""The chunked loss equals plain cross-entropy in value and in every gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from uplift.learn.linear_loss import class_losses, linear_cross_entropy


def plain(
    h: Tensor, w: Tensor, b: Tensor | None, y: Tensor, weights: Tensor, scale: float, cap: float | None
) -> tuple[Tensor, Tensor]:
    z = F.linear(h, w, b) * scale
    z = cap * torch.tanh(z / cap) if cap else z
    log_p = z.log_softmax(-1)
    return (-log_p.gather(1, y[:, None]).squeeze(1) * weights).sum(), (-log_p.mean(-1) * weights).sum()


@pytest.mark.parametrize("rows", [1, 7, 300, 513])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.5, None), (1.0, 5.0), (0.7, 3.0)])
@pytest.mark.parametrize("mix", [(1.0, 0.0), (0.9, 0.1), (0.0, 1.0)])
def test_equals_plain_loss_and_gradients(
    rows: int, bias: bool, scale: float, cap: float | None, mix: tuple[float, float]
) -> None:
    torch.manual_seed(rows)
    h = torch.randn(rows, 16, dtype=torch.float64, requires_grad=True)
    w = torch.randn(50, 16, dtype=torch.float64, requires_grad=True)
    b = torch.randn(50, dtype=torch.float64, requires_grad=True) if bias else None
    y, weights = torch.randint(0, 50, (rows,)), torch.rand(rows, dtype=torch.float64)
    inputs = [t for t in (h, w, b) if t is not None]
    ours = linear_cross_entropy(h, w, y, weights, b, scale, cap)
    cross, uniform = plain(h, w, b, y, weights, scale, cap)
    assert ours.cross_entropy.item() == pytest.approx(cross.item(), rel=1e-5)
    assert ours.uniform.item() == pytest.approx(uniform.item(), rel=1e-5)
    got = torch.autograd.grad(mix[0] * ours.cross_entropy + mix[1] * ours.uniform, inputs)
    wanted = torch.autograd.grad(mix[0] * cross + mix[1] * uniform, inputs)
    for g, e in zip(got, wanted, strict=True):
        assert (g - e).abs().max() <= 1e-5 * max(1.0, float(e.abs().max()))


def test_frozen_head_needs_no_weight_gradient() -> None:
    h, w = torch.randn(9, 4, requires_grad=True), torch.randn(11, 4)
    linear_cross_entropy(h, w, torch.zeros(9, dtype=torch.long), torch.ones(9)).cross_entropy.backward()
    assert h.grad is not None and w.grad is None


def test_no_trained_position_is_a_zero_loss_with_zero_gradients() -> None:
    h, w = torch.randn(0, 4, requires_grad=True), torch.randn(11, 4, requires_grad=True)
    linear_cross_entropy(h, w, torch.zeros(0, dtype=torch.long), torch.ones(0)).cross_entropy.backward()
    assert w.grad is not None and not w.grad.any()


def test_class_losses_ignore_unlabelled_samples() -> None:
    logits, labels = torch.randn(4, 3), torch.tensor([0, -100, 2, 1])
    kept = [0, 2, 3]
    wanted = F.cross_entropy(logits[kept], labels[kept], reduction="sum")
    assert class_losses(logits, labels).cross_entropy.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert len(class_losses(logits, labels).per_unit) == 3
