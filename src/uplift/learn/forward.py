"""One forward of a packed batch: embeddings, hidden states, the head's losses; reruns and shared results."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from uplift.core.values import Batch, Pass, Unit
from uplift.learn.distillation import Distilled, Objective, Teacher, distil
from uplift.learn.distributions import (
    Predictions,
    entropy,
    kl_divergence,
    squared_log_normaliser,
    symmetric_divergence,
)
from uplift.learn.linear_loss import Losses, class_losses, linear_cross_entropy
from uplift.model.attention import Attended
from uplift.model.language_model import LanguageModel


class _Carried(torch.autograd.Function):
    """A loss whose gradients are known: its backward scales them and walks no graph."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: tuple[Tensor, ...], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *((gradient * g).to(gradient.dtype) for gradient in ctx.gradients)


class ForwardPass:
    """Implements ``core.values.Pass`` for a ``LanguageModel``. ``start`` > 0: embeddings are the output of layer ``start``."""

    def __init__(self, model: LanguageModel, batch: Batch, embeddings: Tensor, start: int = 0) -> None:
        self.model, self.batch, self.embeddings, self.start = model, batch, embeddings, start
        self.unit: Unit = "samples" if model.head_kind == "class" else "tokens"
        self.hidden = model.hidden(embeddings, batch.positions, batch.lengths, start=start)
        self.layers: Mapping[int, Tensor] = model.taps.take(batch.lengths) if model.taps is not None else {}
        self.attended: Mapping[int, Attended] = model.attention_taps.take() if model.attention_taps is not None else {}
        self._shared: dict[Hashable, Any] = {}
        self._distilled: Distilled | None = None

    @property
    def count(self) -> float:
        """Trained units of this micro-batch: the sum of token weights, or the labelled samples."""
        return self.batch.counts[self.unit]

    @cached_property
    def losses(self) -> Losses:
        """Losses under the task's head; only trained positions reach the language head."""
        model, batch = self.model, self.batch
        if model.head_kind == "class":
            return class_losses(self._class_logits, batch.labels)
        kept = self._kept
        return linear_cross_entropy(
            self.hidden[0, kept],
            model.head_weight,
            batch.targets[0, kept],
            batch.weights[0, kept],
            model.head_bias,
            model.head_scale,
            model.head_softcap,
        )

    @cached_property
    def embedding_gradient(self) -> Tensor:
        """(1, T, D) gradient of the loss with respect to ``embeddings``; ``losses.cross_entropy`` then carries the weights'."""
        losses, trained = self.losses, self._trained
        # The graph is kept: other terms may use this pass too.
        own, *found = torch.autograd.grad(
            losses.cross_entropy, [self.embeddings, *trained], retain_graph=True, allow_unused=True, materialize_grads=False
        )
        reached = [(parameter, gradient) for parameter, gradient in zip(trained, found, strict=True) if gradient is not None]
        gradients = tuple(gradient for _, gradient in reached)
        carried = _Carried.apply(losses.cross_entropy.detach(), gradients, *(parameter for parameter, _ in reached))
        self.losses = replace(losses, cross_entropy=carried)
        return own

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """While it is open the weights are constants: gradients reach embeddings alone, and cost less."""
        trained = self._trained
        for parameter in trained:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)

    @property
    def task_loss(self) -> Tensor:
        """The cross-entropy as the learner's own term: a constant where ``distilled`` carries its gradient."""
        return self.losses.cross_entropy if self._distilled is None else self._distilled.cross_entropy

    def distilled(self, teacher: Teacher, objective: Objective, share: float) -> tuple[Tensor, Tensor]:
        """What to add to the cross-entropy so that ``share`` of it becomes the divergence from a teacher; and that divergence.

        One pass over the head makes both, so this pass's own term carries no gradient from then on. Once per pass.
        """
        assert self._distilled is None, "one technique at a time divides the loss"
        class_head, batch = self.model.head_kind == "class", self.batch
        targets_K = batch.labels[batch.labels != -100] if class_head else batch.targets[0, self._kept]
        found = distil(self.predictions, teacher, self.unit_weights, objective, targets_K=targets_K, share=share)
        self._distilled = found
        return found.mixed - found.cross_entropy, found.divergence

    @property
    def _trained(self) -> list[Tensor]:
        return [parameter for parameter in self.model.parameters_by_name().values() if parameter.requires_grad]

    def rerun(self, embeddings: Tensor) -> ForwardPass:
        """Another forward of the same batch from other embeddings (1, T, D); dropout draws anew."""
        return ForwardPass(self.model, self.batch, embeddings, self.start)

    @torch.no_grad()
    def under(self, model: LanguageModel) -> ForwardPass:
        """The same batch through another model from its own embeddings, no gradient; once for all who ask."""
        return self.shared(("under", id(model)), lambda: ForwardPass(model, self.batch, model.embed(self.batch.ids)))  # type: ignore[no-any-return]

    def divergence(self, other: Pass, *, symmetric: bool = False, fixed: bool = False) -> Tensor:
        """Weighted sum of KL(self || other) over the trained units, or of both directions; ``fixed``: self is a constant."""
        own = self.predictions.detached() if fixed else self.predictions
        return (symmetric_divergence if symmetric else kl_divergence)(own, other.predictions, self.unit_weights)

    def entropy(self) -> Tensor:
        """Weighted sum of the predictions' entropies over the trained units."""
        return entropy(self.predictions, self.unit_weights)

    def squared_log_normaliser(self) -> Tensor:
        """Weighted sum of (log Z)^2 over the trained units."""
        return squared_log_normaliser(self.predictions, self.unit_weights)

    @cached_property
    def predictions(self) -> Predictions:
        """What the head says at the trained positions, or of the labelled samples."""
        model = self.model
        if model.head_kind == "class":
            return Predictions(logits=self._class_logits[self.batch.labels != -100])
        return Predictions(self.hidden[0, self._kept], model.head_weight, model.head_bias, model.head_scale, model.head_softcap)

    @cached_property
    def _class_logits(self) -> Tensor:
        return self.model.class_logits(self.hidden, self.batch.lengths)

    @cached_property
    def _kept(self) -> Tensor:
        """Indices of the trained positions."""
        return torch.nonzero(self.batch.weights[0], as_tuple=True)[0]

    @cached_property
    def owners(self) -> Tensor:
        """(K,) index in the batch of the sample each trained unit belongs to."""
        if self.model.head_kind == "class":
            return torch.nonzero(self.batch.labels != -100, as_tuple=True)[0]
        sizes = torch.tensor(self.batch.lengths, device=self.batch.ids.device)
        return torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)[self._kept]

    @cached_property
    def unit_weights(self) -> Tensor:
        """(K,) loss weight of each trained unit."""
        if self.model.head_kind == "class":
            return torch.ones_like(self.batch.labels[self.batch.labels != -100], dtype=torch.float32)
        return self.batch.weights[0, self._kept]

    def shared(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """``make()``, computed once for this pass under ``key``."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]
