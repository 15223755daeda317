"""What is left to chance in a model's training passes, and where in its blocks chance can be let in.

Shapes: T tokens of a packed row, N documents in it, D hidden width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from pydantic import PrivateAttr
from torch import Tensor, nn

from uplift.core.capability import Capabilities
from uplift.core.technique import Phase, Technique

ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
FEED_FORWARD = re.compile(r"mlp|ffn|feed_?forward|moe", re.IGNORECASE)
PROBE_TOKENS = 8

Change = Callable[[Tensor, Tensor, dict[str, Any]], Tensor]
"""(output, first input, keyword arguments) of a module -> its output."""


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


class LayerChance(Technique):
    """Base of techniques that let chance into the blocks while they train; evaluation sees none of it."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        needs=frozenset({"training"}), gives=frozenset({"dropout", "random_layers"})
    )
    phase: ClassVar[Phase] = "precision"  # after adapters, whose layers then stand where the plain ones stood

    _hooks: list[Any] = PrivateAttr(default_factory=list)
    _seen: Any = PrivateAttr(None)

    def hook(self, module: nn.Module, change: Change) -> None:
        """Change the module's first output in training, until ``finish``."""
        self._hooks.append(module.register_forward_hook(on_output(change), with_kwargs=True))

    def finish(self, model: Any) -> Any:
        """Take the hooks out."""
        for hook in self._hooks:
            hook.remove()
        return model

    def state(self) -> dict[str, Any]:
        """The sums behind the proof; none when the technique is off."""
        return {"seen": [] if self._seen is None else self._seen.tolist()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the sums."""
        if self._seen is not None:
            self._seen.copy_(torch.tensor(state["seen"]))


def on_output(change: Change) -> Callable[..., Any]:
    """A forward hook (``with_kwargs=True``) that changes the first output of a module while it trains."""

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
