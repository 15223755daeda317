"""Blocks that keep less for the backward pass, with the same results.

Autograd keeps the output of every norm and of every activation, because the matrix product that follows needs its input. Both
are a few pointwise operations on something that is kept anyway, so here they are forgotten and computed again when the
backward pass asks for them. That is about half of a decoder's activations for below one per cent of its time.

Shapes: T tokens of a row, D hidden width, F feed-forward width.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _Cheap:
    """A tensor that can be had again. Known by itself while it lives; graph nodes that need it share this in its place.

    What is made again is kept until all nodes that asked have had it (they run one after another), not longer.
    """

    def __init__(self, tensor: Tensor, make: Callable[[], Tensor]) -> None:
        self.tensor, self.version, self.make = weakref.ref(tensor), tensor._version, make
        self.nodes = self.served = 0
        self.again: Tensor | None = None

    def is_same(self, other: Tensor) -> bool:
        """Whether ``other`` is the tensor, or all of it in another shape, unchanged since."""
        own = self.tensor()
        if own is None or own.dtype != other.dtype or own.numel() != other.numel():
            return False
        return other.is_contiguous() and other._version == self.version

    @torch.no_grad()
    def serve(self) -> Tensor:
        """The tensor, made again for the first node that asks."""
        made = self.again if self.again is not None else self.make()
        self.served += 1
        self.again = made if self.served % self.nodes else None
        return made


_cheap: ContextVar[dict[int, _Cheap] | None] = ContextVar("cheap", default=None)


def forgettable(tensor: Tensor, make: Callable[[], Tensor]) -> Tensor:
    """``tensor``, which ``make()`` gives again bit for bit; inside ``forgetting`` no node of the graph keeps it."""
    known = _cheap.get()
    if known is not None and tensor.requires_grad and tensor.is_contiguous():
        known[tensor.data_ptr()] = _Cheap(tensor, make)
    return tensor


@contextmanager
def forgetting() -> Iterator[None]:
    """While it is open, graph nodes keep how to make the ``forgettable`` tensors in place of the tensors."""
    known: dict[int, _Cheap] = {}

    def pack(tensor: Tensor) -> Tensor | tuple[_Cheap, torch.Size]:
        cheap = known.get(tensor.data_ptr())
        if cheap is None or not cheap.is_same(tensor):
            return tensor.detach()  # the tensor itself would make a cycle with the node that it came from, never to be freed
        cheap.nodes += 1
        return cheap, tensor.shape

    def unpack(kept: Tensor | tuple[_Cheap, torch.Size]) -> Tensor:
        return kept if isinstance(kept, Tensor) else kept[0].serve().view(kept[1])

    token = _cheap.set(known)
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield
    finally:
        _cheap.reset(token)


class _RmsNorm(torch.autograd.Function):
    """``w * x r`` with ``r = (mean(x^2) + eps)^-1/2``, in float32; keeps x and r (T, 1)."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        x32_TD = x_TD.float()
        r_T1 = torch.rsqrt(x32_TD.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x_TD, weight_D, r_T1)
        ctx.mark_non_differentiable(r_T1)
        ctx.set_materialize_grads(False)
        return _scaled(x_TD, weight_D, r_T1), r_T1

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_TD: Tensor, _: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        x_TD, weight_D, r_T1 = ctx.saved_tensors
        unit_TD, g32_TD = x_TD.float() * r_T1, g_TD.float()
        product_TD = g32_TD * unit_TD
        g_x = g_weight = None
        if ctx.needs_input_grad[0]:
            along_T1 = (product_TD @ weight_D.float()).mul_(-1 / x_TD.shape[-1])[..., None]
            g_x = torch.addcmul(g32_TD * weight_D, unit_TD, along_T1).mul_(r_T1).to(x_TD.dtype)
        if ctx.needs_input_grad[1]:
            g_weight = product_TD.flatten(0, -2).sum(0).to(weight_D.dtype)
        return g_x, g_weight, None


def _scaled(x_TD: Tensor, weight_D: Tensor, r_T1: Tensor) -> Tensor:
    return weight_D * (x_TD.float() * r_T1).to(x_TD.dtype)


class _Gated(torch.autograd.Function):
    """``act(g) * u``; keeps g and u (T, F) and nothing else."""

    @staticmethod
    def forward(ctx: Any, gate_TF: Tensor, up_TF: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(gate_TF, up_TF)
        ctx.act = act
        return act(gate_TF).mul_(up_TF)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_TF: Tensor) -> tuple[Tensor, Tensor, None]:
        gate_TF, up_TF = ctx.saved_tensors
        with torch.enable_grad():
            gate_TF = gate_TF.detach().requires_grad_(True)
            active_TF = ctx.act(gate_TF)
        (g_gate,) = torch.autograd.grad(active_TF, gate_TF, g_TF * up_TF)
        return g_gate, active_TF.detach().mul_(g_TF), None


# -- modules of transformers, made lean -----------------------------------------------------------------------------------
# What a forgotten tensor is made from is kept without its graph: with it, graph and hooks would hold each other for ever.
Forward = Callable[[Any, Tensor], Tensor]


def _rms_norm(base: Forward, module: Any, x: Tensor) -> Tensor:
    weight = module.weight
    if x.dtype != weight.dtype:
        return base(module, x)
    out, r = _RmsNorm.apply(x, weight, module.variance_epsilon)
    kept = x.detach()
    return forgettable(out, lambda: _scaled(kept, weight, r))


def _gated(base: Forward, module: Any, x: Tensor) -> Tensor:
    gate, up, act = module.gate_proj(x), module.up_proj(x), module.act_fn
    kept_gate, kept_up = gate.detach(), up.detach()
    out = forgettable(_Gated.apply(gate, up, act), lambda: act(kept_gate).mul_(kept_up))
    return module.down_proj(out)  # type: ignore[no-any-return]


def _pointwise(base: Forward, module: Any, x: Tensor) -> Tensor:
    out, kept = base(module, x), x.detach()
    return forgettable(out, lambda: base(module, kept)) if out.dtype == x.dtype else out


def _tanh_gelu(base: Forward, module: Any, x: Tensor) -> Tensor:
    kept = x.detach()
    return forgettable(nn.functional.gelu(x, approximate="tanh"), lambda: nn.functional.gelu(kept, approximate="tanh"))


def _lean_forward(module: nn.Module) -> Callable[[Forward, Any, Tensor], Tensor] | None:
    """The lean forward that may fit a module, by its name and parts; whether it is right is tried afterwards."""
    kind, children = type(module).__name__, dict(module.named_children())
    if set(children) == {"gate_proj", "up_proj", "down_proj", "act_fn"}:
        return _gated
    if kind in ("LayerNorm", "GELUActivation"):
        return _pointwise
    if kind in ("NewGELUActivation", "GELUTanh"):
        return _tanh_gelu
    own = dict(module.named_parameters(recurse=False))
    if set(own) == {"weight"} and own["weight"].dim() == 1 and hasattr(module, "variance_epsilon") and not children:
        return _rms_norm
    return None


@cache
def _lean_class(base: type[nn.Module], lean: Callable[[Forward, Any, Tensor], Tensor]) -> type[nn.Module]:
    """A subclass under the same name, so that whatever goes by names finds what it knows."""

    def forward(self: Any, *inputs: Tensor, **options: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return base.forward(self, *inputs, **options)  # type: ignore[no-any-return]
        (x,) = (*inputs, *options.values())
        return lean(base.forward, self, x)

    return type(base.__name__, (base,), {"forward": forward, "__module__": base.__module__})


def make_lean(root: nn.Module) -> int:
    """Turn the norms, gated feed-forwards and activations of a transformers model lean, in place; returns how many.

    A kind of module is turned only after its first one gave the same output and the same gradient as before.
    """
    verdicts: dict[type[nn.Module], bool] = {}
    count = 0
    for module in root.modules():
        base: Any = type(module)
        lean = _lean_forward(module)
        if lean is None:
            continue
        changed = _lean_class(base, lean)
        if base not in verdicts:
            verdicts[base] = _same(module, changed)
        if verdicts[base]:
            module.__class__ = changed
            count += 1
    return count


def _same(module: nn.Module, changed: type[nn.Module]) -> bool:
    """Whether the module's class may be ``changed``: outputs and input gradients agree on a few random rows."""
    parameter = next(module.parameters(), torch.empty(0))
    first = next((part for part in module.modules() if isinstance(part, nn.Linear)), None)
    width = first.in_features if first is not None else parameter.shape[0] if parameter.dim() == 1 and len(parameter) else 8
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, width, generator=generator).to(parameter).requires_grad_(True)
    g = torch.randn(1, 4, width, generator=generator).to(parameter)
    tolerance = 1e-5 if parameter.dtype == torch.float32 else 2e-2
    base = type(module)
    found = []
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        for kind in (base, changed):
            module.__class__ = kind
            try:
                with forgetting():
                    out = module(x)
                    (gradient,) = torch.autograd.grad(out, x, g)
            finally:
                module.__class__ = base
            found.append((out.detach(), gradient))
    return all(torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in zip(*found, strict=True))
