"""Keeps the output of frozen lower layers, so that from the second epoch on only the layers above are run.

Keyed by the tokens of a sample: what the tokens are is all that frozen layers depend on. Dropout in the frozen layers is off,
as in a frozen feature extractor. With ``exact`` every sample is computed alone, so its hidden states are the same bits
whatever it was batched with, in whatever order, before or after a restart; measured cost: 1.1 to 1.5 times a packed pass over
short samples, once per sample.

Shapes: T tokens of a row, L tokens of a sample, D hidden width.
"""

from __future__ import annotations

import hashlib

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
        self._kept: dict[bytes, Tensor] = {}

    def get(self, batch: Batch) -> Tensor:
        """Output (1, T, D) of layer ``depth`` for a packed batch, without gradient; feed it to ``hidden(start=depth)``."""
        pieces = torch.split(batch.ids[0], list(batch.lengths))
        keys = [_key(piece) for piece in pieces]
        missing = [index for index, key in enumerate(keys) if key not in self._kept]
        self.hits, self.misses = self.hits + len(keys) - len(missing), self.misses + len(missing)
        computed = self._compute(batch, pieces, missing)
        for index in missing:
            self._keep(keys[index], computed[index])
        device = batch.ids.device
        found = [computed[i] if i in computed else self._kept[key].to(device) for i, key in enumerate(keys)]
        return torch.cat(found)[None].float()

    def _compute(self, batch: Batch, pieces: tuple[Tensor, ...], missing: list[int]) -> dict[int, Tensor]:
        """Hidden states (L, D) of the missing samples, rounded to the stored type as a later hit would be."""
        groups = [[index] for index in missing] if self.exact else [missing] if missing else []
        positions = torch.split(batch.positions[0], list(batch.lengths))
        computed: dict[int, Tensor] = {}
        for group in groups:
            ids = torch.cat([pieces[index] for index in group])[None]
            where = torch.cat([positions[index] for index in group])[None]
            lengths = [batch.lengths[index] for index in group]
            with torch.no_grad():
                hidden = self.model.layer_hidden(self.model.embed(ids), where, lengths, self.depth)
            computed |= dict(zip(group, torch.split(hidden[0].to(self.dtype), lengths), strict=True))
        return computed

    def _keep(self, key: bytes, hidden: Tensor) -> None:
        size = hidden.numel() * hidden.element_size()
        if key not in self._kept and self.bytes + size <= self.memory_limit:
            self._kept[key] = hidden.detach().to("cpu", copy=True)
            self.bytes += size


def _key(ids: Tensor) -> bytes:
    return hashlib.blake2b(ids.cpu().numpy().tobytes(), digest_size=16).digest()
