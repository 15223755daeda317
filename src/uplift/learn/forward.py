"""One forward of a packed batch: embeddings, hidden states, the head's losses; reruns and shared results."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from uplift.core.values import Batch, Unit
from uplift.learn.linear_loss import Losses, class_losses, linear_cross_entropy
from uplift.model.language_model import LanguageModel


class ForwardPass:
    """Implements ``core.values.Pass`` for a ``LanguageModel``. ``start`` > 0: embeddings are the output of layer ``start``."""

    def __init__(self, model: LanguageModel, batch: Batch, embeddings: Tensor, start: int = 0) -> None:
        self.model, self.batch, self.embeddings, self.start = model, batch, embeddings, start
        self.unit: Unit = "samples" if model.head_kind == "class" else "tokens"
        self.hidden = model.hidden(embeddings, batch.positions, batch.lengths, start=start)
        self._shared: dict[Hashable, Any] = {}

    @property
    def count(self) -> float:
        """Trained units of this micro-batch: the sum of token weights, or the labelled samples."""
        return self.batch.counts[self.unit]

    @cached_property
    def losses(self) -> Losses:
        """Losses under the task's head; only trained positions reach the language head."""
        model, batch = self.model, self.batch
        if model.head_kind == "class":
            return class_losses(model.class_logits(self.hidden, batch.lengths), batch.labels)
        kept = torch.nonzero(batch.weights[0], as_tuple=True)[0]
        return linear_cross_entropy(
            self.hidden[0, kept],
            model.head_weight,
            batch.targets[0, kept],
            batch.weights[0, kept],
            model.head_bias,
            model.head_scale,
            model.head_softcap,
        )

    def rerun(self, embeddings: Tensor) -> ForwardPass:
        """Another forward of the same batch from other embeddings (1, T, D)."""
        return ForwardPass(self.model, self.batch, embeddings, self.start)

    def shared(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """``make()``, computed once for this pass under ``key``."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]
