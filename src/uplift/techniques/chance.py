"""What is left to chance in a model's training passes, and where in its blocks chance can be let in.

Shapes: T tokens of a packed row, N documents in it, D hidden width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
FEED_FORWARD = re.compile(r"mlp|ffn|feed_?forward|moe", re.IGNORECASE)
PROBE_TOKENS = 8


def linear_layers(block: nn.Module) -> dict[str, Any]:
    """The outermost linear layers of a block by name: plain ones, GPT-2's transposed ones, and those an adapter wraps."""
    found: dict[str, Any] = {}
    for name, module in block.named_modules():
        if _width(module) is not None and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    return found


def _width(module: Any) -> int | None:
    """Width of a linear layer's output; None for everything else."""
    width = getattr(module, "out_features", getattr(module, "nf", None))
    return width if isinstance(width, int) else None


def residual_outputs(block: nn.Module, width: int) -> dict[str, nn.Module]:
    """The modules of a block whose output (..., ``width``) is added to the residual stream: ``attention``, ``feed_forward``.

    Found by name and width, so that post-norm encoders (where a larger module adds and normalises) are met inside it.
    """
    linear = {name: module for name, module in linear_layers(block).items() if _width(module) == width}
    attention = [module for name, module in linear.items() if ATTENTION.search(name)]
    others = [module for name, module in linear.items() if not ATTENTION.search(name)]
    whole = [child for name, child in block.named_children() if FEED_FORWARD.search(name) and _width(child) is None]
    found = {"attention": attention, "feed_forward": whole or others}
    return {place: modules[-1] for place, modules in found.items() if modules}


def own_dropout(blocks: Sequence[nn.Module]) -> float:
    """Largest rate of the dropout layers that the blocks have of their own, adapters aside; 0 when there are none."""
    rates = [0.0]
    for block in blocks:
        adapted = tuple(f"{name}." for name in linear_layers(block))
        own = [m for name, m in block.named_modules() if isinstance(m, nn.Dropout) and not name.startswith(adapted)]
        rates += [module.p for module in own]
    return max(rates)


def passes_differ(model: Any) -> bool:
    """Whether two training passes of one row can differ: a dropout layer is active, or a probe of a few tokens says so.

    The layers are asked too, because a fresh LoRA's dropout cannot be seen in its output yet.
    """
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.pretrained.modules()):
        return True
    ids = torch.arange(3, 3 + PROBE_TOKENS, device=model.device)[None]
    positions = torch.arange(PROBE_TOKENS, device=model.device)[None]
    with torch.random.fork_rng(), torch.no_grad(), in_training(model.pretrained):
        first, second = (model.hidden(model.embed(ids), positions, (PROBE_TOKENS,)) for _ in range(2))
    return not torch.equal(first, second)


@contextmanager
def in_training(module: nn.Module) -> Iterator[None]:
    """Training mode inside; every submodule gets its own mode back."""
    evaluating = [part for part in module.modules() if not part.training]
    module.train()
    try:
        yield
    finally:
        for part in evaluating:
            part.training = False


def on_output(change: Callable[[Tensor, Tensor, dict[str, Any]], Tensor]) -> Callable[..., Any]:
    """A forward hook (``with_kwargs=True``) that changes the first output of a module while it trains.

    ``change`` gets the module's output, its first input and its keyword arguments.
    """

    def hook(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any], output: Any) -> Any:
        if not module.training:
            return None
        given: Any = arguments[0] if arguments else options.get("hidden_states")
        if isinstance(output, tuple):
            return (change(output[0], given, options), *output[1:])
        return change(output, given, options)

    return hook


def documents_of(states: Tensor, options: dict[str, Any]) -> tuple[int, ...] | None:
    """Token counts of the documents in a block's packed input; None when each document is a padded row of its own."""
    documents = options.get("documents")
    return tuple(documents.lengths) if documents is not None and len(states) == 1 else None
