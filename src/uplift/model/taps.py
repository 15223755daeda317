"""What some of a model's blocks give and look at, caught as it is made. Shapes: T tokens of a row, D hidden width."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from uplift.model.attention import WATCH, Attended
from uplift.model.backbone import unpad


class Taps:
    """Catches what the blocks give until ``close``; ``take`` hands it over. Layers count from 1."""

    def __init__(self, blocks: Sequence[nn.Module], layers: Iterable[int], packed: bool) -> None:
        self._packed = packed
        self._caught: dict[int, Tensor] = {}
        self._handles = [blocks[layer - 1].register_forward_hook(self._catch(layer)) for layer in sorted(set(layers))]

    def _catch(self, layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, arguments: Any, output: Any) -> None:
            self._caught[layer] = output[0] if isinstance(output, tuple) else output

        return keep

    def take(self, lengths: Sequence[int]) -> dict[int, Tensor]:
        """Layer -> (1, T, D) of the last pass, a packed row of documents of these lengths; nothing is kept."""
        caught, self._caught = self._caught, {}
        return caught if self._packed else {layer: unpad(states, lengths) for layer, states in caught.items()}

    def close(self) -> None:
        """Catch no more."""
        for handle in self._handles:
            handle.remove()


class AttentionTaps:
    """Catches what the attention of packed blocks compares, until ``close``; ``take`` hands it over. Layers count from 1."""

    def __init__(self, blocks: Sequence[nn.Module], layers: Iterable[int]) -> None:
        self._caught: dict[int, Attended] = {}
        self._watched = [module for layer in sorted(set(layers)) for module in self._watch(layer, blocks[layer - 1])]

    def _watch(self, layer: int, block: nn.Module) -> list[nn.Module]:
        modules = list(block.modules())
        for module in modules:
            setattr(module, WATCH, partial(self._caught.__setitem__, layer))
        return modules

    def take(self) -> dict[int, Attended]:
        """Layer -> what its attention compared in the last pass; nothing is kept."""
        caught = dict(self._caught)
        self._caught.clear()
        return caught

    def close(self) -> None:
        """Catch no more."""
        for module in self._watched:
            delattr(module, WATCH)
