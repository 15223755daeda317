"""Cross-entropy straight from hidden states, in chunks: the (K, V) logits never exist as a whole.

Shape legend: K trained positions, k positions of one chunk, D hidden width, V vocabulary.

With p = softmax(z), z = s(hW^T + b), the two sums a head can be asked for share their expensive parts:

    cross-entropy  d/dz = w (p - onehot(y))        uniform  d/dz = w (p - 1/V)

so one pass keeps ``pW`` (K, D) and ``p^T h`` (V, D), and the backward of any mix of the two costs no further matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CPU_CHUNK, CPU_CHUNK_MOST, CPU_CHUNK_ELEMENTS = 256, 512, 2**22
DEVICE_CHUNK_ELEMENTS = 2**27


@dataclass(frozen=True)
class Losses:
    """Sums over the trained units, weighted (see ``core.values.HeadLosses``)."""

    cross_entropy: Tensor
    uniform: Tensor
    per_unit: Tensor


def chunk_rows(weight_VD: Tensor) -> int:
    """Rows of logits per chunk of this head."""
    return rows_at_once(weight_VD.shape[0], weight_VD.device.type)


def rows_at_once(vocabulary: int, device: str) -> int:
    """Rows of logits per chunk: 256 to 512 on a CPU (fewer cost the matrix product, more the caches), enough to fill a GPU."""
    if device == "cpu":
        return max(CPU_CHUNK, min(CPU_CHUNK_MOST, CPU_CHUNK_ELEMENTS // vocabulary))
    return max(CPU_CHUNK, DEVICE_CHUNK_ELEMENTS // vocabulary)


def _logits(hidden_kD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, scale: float) -> Tensor:
    logits = F.linear(hidden_kD, weight_VD, bias_V).float()
    return logits if scale == 1.0 else logits * scale


def _add_product(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """``total + left @ right`` in float32, into ``total``; the first product needs no zeros to start from."""
    if total is None:
        return (left @ right).float()
    return total.addmm_(left, right) if left.dtype == torch.float32 else total.add_(left @ right)


class _LinearLoss(torch.autograd.Function):
    """Both sums and, in the same pass over the chunks, what their gradients need."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_KD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_K: Tensor,
        weights_K: Tensor,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        want_hidden, want_weight, want_bias = ctx.needs_input_grad[:3]
        compute = (
            torch.get_autocast_dtype(hidden_KD.device.type)
            if torch.is_autocast_enabled(hidden_KD.device.type)
            else hidden_KD.dtype
        )
        with torch.autocast(hidden_KD.device.type, enabled=False):
            h, w = hidden_KD.to(compute), weight_VD.to(compute)
            b = None if bias_V is None else bias_V.to(compute)
            nll_K = torch.empty(len(h), dtype=torch.float32, device=h.device)
            uniform_K = torch.empty_like(nll_K)
            pw_KD = torch.empty_like(h) if want_hidden else None
            ph_VD: Tensor | None = None
            p_V = torch.zeros(len(w), dtype=torch.float32, device=w.device) if want_bias else None
            for begin in range(0, len(h), chunk_rows(w)):
                part = slice(begin, begin + chunk_rows(w))
                z = _logits(h[part], w, b, scale)
                top, target, mean = z.amax(-1), z.gather(1, targets_K[part, None]).squeeze(1), z.mean(-1)
                e = z.sub_(top[:, None]).exp_()  # p times its row's sum; the sum goes into the thin factors below
                total = e.sum(-1)
                lse = top + total.log()
                nll_K[part] = lse - target
                uniform_K[part] = lse - mean
                if not (want_hidden or want_weight or want_bias):
                    continue
                q, share = e.to(compute), weights_K[part].float() / total
                if pw_KD is not None:
                    torch.mm(q, w, out=pw_KD[part])
                    pw_KD[part] *= share[:, None].to(compute)
                if want_weight:
                    ph_VD = _add_product(ph_VD, q.T, h[part] * share[:, None].to(compute))
                if p_V is not None:
                    p_V.addmv_(e.T, share)
            if want_weight and ph_VD is None:
                ph_VD = torch.zeros(w.shape, dtype=torch.float32, device=w.device)
        ctx.save_for_backward(hidden_KD, weight_VD, targets_K, weights_K, pw_KD, ph_VD, p_V)
        ctx.scale = scale
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(nll_K)
        return (nll_K * weights_K).sum(), (uniform_K * weights_K).sum(), nll_K

    @staticmethod
    def backward(ctx: Any, g_cross: Tensor | None, g_smooth: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_KD, weight_VD, targets_K, weights_K, pw_KD, ph_VD, p_V = ctx.saved_tensors
        smooth = g_smooth is not None
        g_cross = weights_K.new_zeros(()) if g_cross is None else g_cross
        g_uniform = weights_K.new_zeros(()) if g_smooth is None else g_smooth
        total, scale, size = g_cross + g_uniform, ctx.scale, weight_VD.shape[0]
        w_K = weights_K.float()
        g_hidden = g_weight = g_bias = None
        if pw_KD is not None:
            g = pw_KD.float() * total - weight_VD[targets_K].float() * (w_K * g_cross)[:, None]
            if smooth:
                g -= weight_VD.float().mean(0) * (w_K * g_uniform)[:, None]
            g_hidden = g.mul_(scale).to(hidden_KD.dtype)
        if ph_VD is not None:
            h = hidden_KD.float()
            g_weight = ph_VD * (total * scale)
            g_weight.index_add_(0, targets_K, h * (w_K * (-g_cross * scale))[:, None])
            if smooth:
                g_weight -= (h * (w_K * (g_uniform * scale / size))[:, None]).sum(0)
            g_weight = g_weight.to(weight_VD.dtype)
        if p_V is not None:
            g_bias = (p_V * total).index_add_(0, targets_K, -w_K * g_cross) - (w_K * g_uniform).sum() / size
            g_bias = g_bias * scale
        return g_hidden, g_weight, g_bias, None, None, None


def _capped_chunk(
    h: Tensor, w: Tensor, b: Tensor | None, y: Tensor, weights: Tensor, scale: float, softcap: float
) -> tuple[Tensor, Tensor, Tensor]:
    z = softcap * torch.tanh(_logits(h, w, b, scale) / softcap)
    lse = z.logsumexp(-1)
    nll = lse - z.gather(1, y[:, None]).squeeze(1)
    return (nll * weights).sum(), ((lse - z.mean(-1)) * weights).sum(), nll.detach()


def linear_cross_entropy(
    hidden_KD: Tensor,
    weight_VD: Tensor,
    targets_K: Tensor,
    weights_K: Tensor,
    bias_V: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Losses:
    """Losses of K positions under a linear head, with at most one chunk of logits in memory.

    Gradients reach ``hidden_KD``, ``weight_VD`` and ``bias_V`` when they ask for them. ``softcap`` c applies c tanh(z / c)
    (Gemma 2) and recomputes the chunks in the backward pass instead.
    """
    if softcap is None:
        return Losses(*_LinearLoss.apply(hidden_KD, weight_VD, bias_V, targets_K, weights_K, scale))
    sums: list[tuple[Tensor, Tensor, Tensor]] = []
    for begin in range(0, len(hidden_KD), chunk_rows(weight_VD)):
        part = slice(begin, begin + chunk_rows(weight_VD))
        arguments = (hidden_KD[part], weight_VD, bias_V, targets_K[part], weights_K[part], scale, softcap)
        sums.append(checkpoint(_capped_chunk, *arguments, use_reentrant=False))
    if not sums:
        zero = hidden_KD.sum() * 0.0
        return Losses(zero, zero, hidden_KD.new_zeros(0))
    cross, uniform, units = zip(*sums, strict=True)
    return Losses(torch.stack(cross).sum(), torch.stack(uniform).sum(), torch.cat(units))


def class_losses(logits_NC: Tensor, labels_N: Tensor) -> Losses:
    """The same two sums for a classification head; samples labelled -100 count for nothing."""
    kept = labels_N != -100
    log_p = logits_NC[kept].float().log_softmax(-1)
    nll = -log_p.gather(1, labels_N[kept, None]).squeeze(1)
    return Losses(nll.sum(), -log_p.mean(-1).sum(), nll.detach())
