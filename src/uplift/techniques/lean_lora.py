"""A LoRA linear layer that keeps only its input and the rank-sized product for the backward pass (not even its input for a
frozen A).

PEFT's own forward records six operations per layer: the scaled low-rank output and the sum exist beside the base output. Here
they are one function with in-place accumulation; the arithmetic is PEFT's. Shapes: N rows, I input, O output width, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class LeanLora(torch.autograd.Function):
    """``y = x W^T + b + s (x A^T) B^T`` for a frozen W (O, I), trained or frozen A (R, I), and trained B (O, R)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """The output (..., O) of x (..., I), computed in autocast's type where autocast is on."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        with torch.autocast(kind, enabled=False):
            x_NI = x.reshape(-1, x.shape[-1]).to(dtype)
            y_NO = nn.functional.linear(x_NI, weight.to(dtype), None if bias is None else bias.to(dtype))
            h_NR = x_NI @ a.to(dtype).T
            y_NO.addmm_(h_NR, b.to(dtype).T, alpha=scale)
        ctx.save_for_backward(x_NI if ctx.needs_input_grad[3] else None, h_NR, weight, a, b)
        ctx.scale, ctx.shape, ctx.dtype = scale, x.shape, x.dtype
        return y_NO.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, A and B: ``gW + s (gB) A``, ``s (gB)^T x``, ``s g^T (x A^T)``."""
        x_NI, h_NR, weight, a, b = ctx.saved_tensors
        dtype, need_x, need_a, need_b = h_NR.dtype, ctx.needs_input_grad[0], ctx.needs_input_grad[3], ctx.needs_input_grad[4]
        g_NO = gradient.reshape(-1, gradient.shape[-1]).to(dtype)
        g_x = g_a = g_b = None
        if need_x or need_a:
            gb_NR = g_NO @ b.to(dtype)
        if need_x:
            g_x = (g_NO @ weight.to(dtype)).addmm_(gb_NR, a.to(dtype), alpha=ctx.scale).view(ctx.shape).to(ctx.dtype)
        if need_a:
            g_a = (gb_NR.T @ x_NI).mul_(ctx.scale).to(a.dtype)
        if need_b:
            g_b = (g_NO.T @ h_NR).mul_(ctx.scale).to(b.dtype)
        return g_x, None, None, g_a, g_b, None


class LeanLinear(PeftLinear):
    """PEFT's LoRA layer with the lean function where it applies, and PEFT's own forward everywhere else."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output (..., O) of x (..., I)."""
        adapter = self._lean_adapter(x) if not args and not kwargs else None
        if adapter is None:
            return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]
        base: Any = self.base_layer
        a, b, scale = self.lora_A[adapter].weight, self.lora_B[adapter].weight, self.scaling[adapter]
        return LeanLora.apply(x, base.weight, base.bias, a, b, scale)  # type: ignore[no-any-return]

    def _lean_adapter(self, x: Tensor) -> str | None:
        """The adapter to use the lean function with; None where merging, dropout, a variant or number types forbid it."""
        active: list[str] = self.active_adapters
        base: Any = self.base_layer
        if self.disable_adapters or self.merged or len(active) != 1 or active[0] not in self.lora_A:
            return None
        adapter = active[0]
        dropout = self.lora_dropout[adapter]
        noisy = self.training and isinstance(dropout, nn.Dropout) and dropout.p > 0
        if noisy or adapter in self.lora_variant or self.lora_bias[adapter] or base.weight.requires_grad:
            return None
        autocast = torch.is_autocast_enabled(x.device.type)
        same = x.dtype == base.weight.dtype == self.lora_A[adapter].weight.dtype
        return adapter if base.weight.is_floating_point() and (same or autocast) else None


def install_lean_layers(root: nn.Module) -> int:
    """Turn every plain PEFT LoRA layer over an ``nn.Linear`` into a lean one, in place; returns how many."""
    count = 0
    for module in root.modules():
        if type(module) is PeftLinear and type(module.base_layer) is nn.Linear:
            module.__class__ = LeanLinear
            count += 1
    return count
