"""Keeps the output of frozen lower layers, so that from the second epoch on only the layers above are run.

Keyed by the tokens of a sample: what the tokens are is all that frozen layers depend on. Dropout in the frozen layers is off,
as in a frozen feature extractor.

The last bits of a matrix product depend on how many rows it has, so a sample's hidden states depend on what it is computed
with. Two ways keep a restarted run equal to the last bit:

- ``exact``: every sample is computed alone. Nothing has to be remembered; over short samples (25 tokens) the first pass costs
  twice a packed one.
- otherwise the new samples of a batch are computed together, at full speed, and the grouping is part of the run's state
  (``state``, ``load_state``): after a restart a group is computed again as it was.

Shapes: T tokens of a row, L tokens of a sample, D hidden width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import psutil
import torch
from torch import Tensor

from uplift.core.values import Batch
from uplift.model.language_model import LanguageModel

SHARE_OF_MEMORY = 0.25


class PrefixCache:
    """Outputs of layer ``depth`` (1-based) of samples seen before, in ``dtype`` on the CPU, up to ``memory_limit`` bytes.

    When the limit is reached nothing is evicted: further samples are computed each time. ``hits``, ``misses`` and ``bytes``
    say what it did.
    """

    def __init__(
        self,
        model: LanguageModel,
        depth: int,
        *,
        dtype: torch.dtype = torch.float32,
        memory_limit: int | None = None,
        exact: bool = True,
    ) -> None:
        self.model, self.depth, self.dtype, self.exact = model, depth, dtype, exact
        self.memory_limit = int(psutil.virtual_memory().available * SHARE_OF_MEMORY) if memory_limit is None else memory_limit
        self.hits = self.misses = self.bytes = 0
        self._hidden: dict[bytes, Tensor] = {}
        self._groups: list[list[Tensor]] = []
        self._group_of: dict[bytes, int] = {}

    def get(self, batch: Batch) -> Tensor:
        """Output (1, T, D) of layer ``depth`` for a packed batch, without gradient; feed it to ``hidden(start=depth)``."""
        samples = [piece.to("cpu", torch.int32) for piece in torch.split(batch.ids[0], list(batch.lengths))]
        keys = [_key(sample) for sample in samples]
        new = {key: sample for key, sample in zip(keys, samples, strict=True) if key not in self._group_of}
        self.misses, self.hits = self.misses + len(new), self.hits + len(keys) - len(new)
        for key in keys:
            if key in self._group_of and key not in self._hidden:  # computed before the restart
                self._hidden |= self._compute(self._groups[self._group_of[key]])
        passing: dict[bytes, Tensor] = {}
        for group in [[sample] for sample in new.values()] if self.exact else [list(new.values())] if new else []:
            computed = self._compute(group)
            (self._hidden if self._remember(group, computed) else passing).update(computed)
        found = [passing[key] if key in passing else self._hidden[key] for key in keys]
        return torch.cat(found)[None].to(batch.ids.device, torch.float32)

    def state(self) -> dict[str, Any]:
        """What a restart needs to give the same bits: which samples were computed together (nothing when ``exact``)."""
        if self.exact or not self._groups:
            return {}
        samples = [sample for group in self._groups for sample in group]
        return {
            "ids": torch.cat(samples),
            "lengths": torch.tensor([len(sample) for sample in samples]),
            "group_sizes": torch.tensor([len(group) for group in self._groups]),
            "bytes": self.bytes,
            "memory_limit": self.memory_limit,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over the groups of an earlier run; their hidden states are computed again when they are asked for."""
        self._hidden, self._groups, self._group_of, self.bytes = {}, [], {}, 0
        if not state:
            return
        samples = iter(torch.split(state["ids"], state["lengths"].tolist()))
        self.bytes, self.memory_limit = int(state["bytes"]), int(state["memory_limit"])
        for size in state["group_sizes"].tolist():
            self._enter([next(samples) for _ in range(size)])

    def _compute(self, group: Sequence[Tensor]) -> dict[bytes, Tensor]:
        """Hidden states (L, D) of samples computed as one row, in the stored type as every later use has them."""
        lengths = [len(sample) for sample in group]
        ids = torch.cat(list(group)).long()[None].to(self.model.device)
        positions = torch.cat([torch.arange(length) for length in lengths])[None].to(self.model.device)
        with torch.no_grad():
            hidden = self.model.layer_hidden(self.model.embed(ids), positions, lengths, self.depth)
        pieces = torch.split(hidden[0].to("cpu", self.dtype), lengths)
        # Copies: a piece must not keep its whole row in memory.
        return {_key(sample): piece.clone() for sample, piece in zip(group, pieces, strict=True)}

    def _remember(self, group: list[Tensor], computed: Mapping[bytes, Tensor]) -> bool:
        """Whether the group as a whole fits; then it is entered."""
        size = sum(hidden.numel() * hidden.element_size() for hidden in computed.values())
        if self.bytes + size > self.memory_limit:
            return False
        self.bytes += size
        self._enter([sample.clone() for sample in group])
        return True

    def _enter(self, group: list[Tensor]) -> None:
        self._group_of |= dict.fromkeys(map(_key, group), len(self._groups))
        self._groups.append(group)


def _key(sample: Tensor) -> bytes:
    return hashlib.blake2b(sample.numpy().tobytes(), digest_size=16).digest()
