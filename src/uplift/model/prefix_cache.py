"""Keeps the output of frozen lower layers, so that training runs only the layers above them.

Keyed by the tokens of a sample: what the tokens are is all that frozen layers depend on. Dropout in the frozen layers is off,
as in a frozen feature extractor. The cache is filled once, before step 1, in packed blocks whose composition depends on the
samples alone; so the same run finds the same bits in it, in whatever order samples come and after any restart.

Shapes: T tokens of a row, L tokens of a sample, D hidden width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import psutil
import torch
from torch import Tensor

from uplift.core.values import Batch, Encoded, Progress
from uplift.data.packing import pack, split_micro
from uplift.model.language_model import LanguageModel

SHARE_OF_MEMORY = 0.25
BLOCK_TOKENS = 1024


class PrefixCache:
    """Outputs of layer ``depth`` (1-based) in float32 on the CPU, up to ``memory_limit`` bytes (default: a quarter of all).

    ``hits``, ``misses`` and ``bytes`` say what it did.
    """

    def __init__(self, model: LanguageModel, depth: int, *, memory_limit: int | None = None) -> None:
        self.model, self.depth = model, depth
        self.memory_limit = int(psutil.virtual_memory().total * SHARE_OF_MEMORY) if memory_limit is None else memory_limit
        self.hits = self.misses = self.bytes = 0
        self._kept: dict[bytes, Tensor] = {}

    def fill(self, encoded: Sequence[Encoded]) -> Iterator[int]:
        """Compute and keep the samples, shortest first, until memory is used up; yields the tokens of each finished block."""
        unique = {_key(np.asarray(item.ids)): item for item in encoded}
        for block in split_micro(sorted(unique.values(), key=len), BLOCK_TOKENS):
            batch = pack(block, device=self.model.device, progress=Progress(), seed=0)
            pieces = torch.split(self._compute(batch.ids, batch.positions, batch.lengths), list(batch.lengths))
            if self.bytes + sum(piece.numel() * 4 for piece in pieces) > self.memory_limit:
                return
            for item, piece in zip(block, pieces, strict=True):
                self._kept[_key(np.asarray(item.ids))] = piece.to("cpu", copy=True)
                self.bytes += piece.numel() * 4
            yield batch.ids.shape[1]

    def get(self, batch: Batch) -> Tensor:
        """Output (1, T, D) of layer ``depth`` for a packed batch, without gradient; feed it to ``hidden(start=depth)``.

        A sample that is not kept is computed on its own: its bits must not depend on its company either.
        """
        found = []
        pieces = zip(*(torch.split(row[0], list(batch.lengths)) for row in (batch.ids, batch.positions)), strict=True)
        for length, (ids, positions) in zip(batch.lengths, pieces, strict=True):
            kept = self._kept.get(_key(ids.cpu().numpy()))
            self.hits, self.misses = self.hits + (kept is not None), self.misses + (kept is None)
            found.append(self._compute(ids[None], positions[None], (length,)) if kept is None else kept.to(batch.ids.device))
        return torch.cat(found)[None]

    def _compute(self, ids: Tensor, positions: Tensor, lengths: Sequence[int]) -> Tensor:
        """Output (T, D) of layer ``depth``."""
        with torch.no_grad():
            return self.model.layer_hidden(self.model.embed(ids), positions, lengths, self.depth)[0].float()


def _key(ids: np.ndarray) -> bytes:
    return hashlib.blake2b(ids.astype(np.int64).tobytes(), digest_size=16).digest()
