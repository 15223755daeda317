"""Small changes of embedding outputs, sample by sample: what all adversarial techniques share.

A change is measured per sample of a packed row and never depends on its neighbours; the embedding matrix is not touched.

Shapes: T tokens of a packed row, N samples in it, D embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from uplift.core.capability import Capabilities
from uplift.core.technique import Technique
from uplift.core.values import Batch, Effect, Pass
from uplift.data.packing import sample_generator

HOLDS = 0.95
"""Share of samples whose loss must not fall under the attack; a wrong sign would bring it near 0."""
MORE = 1.5
"""An attack must change predictions this many times as much as noise of its size; noise itself comes out near 1."""
SCORED_EXACTLY: Mapping[str, tuple[str, str]] = {
    "on_policy": (
        "the model's own samples must be scored under the embeddings they were drawn from, and this changes embeddings",
        "change embeddings in a run of its own, before or after",
    )
}
"""What refuses changed embeddings: training on the model's own samples."""
ROUNDING = 1e-6
"""A norm this little above its bound is the bound, rounded."""


def sample_of_token(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """(T,) index of the sample each token of a packed row belongs to."""
    sizes = torch.tensor(lengths, device=device)
    return torch.repeat_interleave(torch.arange(len(lengths), device=device), sizes, output_size=sum(lengths))


def norms_of_samples(values_1TD: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """(N,) L2 norm of each sample's part of a packed row, in float32."""
    squares_T = values_1TD[0].float().pow(2).sum(-1)
    return squares_T.new_zeros(len(lengths)).index_add_(0, sample_of_token(lengths, squares_T.device), squares_T).sqrt()


def scaled(values_1TD: Tensor, factor_N: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """(1, T, D) with each sample's part times its own factor."""
    factor_T = factor_N[sample_of_token(lengths, factor_N.device)]
    return values_1TD * factor_T[None, :, None].to(values_1TD.dtype)


def perturbation(gradient_1TD: Tensor, size_N: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """``size * g / ||g||`` for each sample on its own (1, T, D); zero where a sample's gradient is zero."""
    norms_N = norms_of_samples(gradient_1TD, lengths)
    factor_N = torch.where(norms_N > 0, size_N / norms_N.clamp_min(1e-30), torch.zeros_like(norms_N))
    return scaled(gradient_1TD, factor_N, lengths)


def project(delta_1TD: Tensor, size_N: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """The nearest (1, T, D) whose samples each have at most their norm ``size``; bit-equal where they have it already."""
    norms_N = norms_of_samples(delta_1TD, lengths)
    outside_N = norms_N > size_N * (1.0 + ROUNDING)
    factor_N = torch.where(outside_N, size_N / norms_N.clamp_min(1e-30), torch.ones_like(norms_N))
    return scaled(delta_1TD, factor_N, lengths)


def random_direction(batch: Batch, purpose: str, width: int) -> Tensor:
    """(1, T, D) standard normal numbers in float32; a sample's are drawn from (seed, purpose, step, sample id) alone."""
    device = batch.ids.device
    parts = [
        torch.randn(length, width, generator=sample_generator(batch, purpose, index), device=device)
        for index, length in enumerate(batch.lengths)
    ]
    return torch.cat(parts)[None]


class Perturbing(Technique):
    """Base of techniques that look at each batch again, near where it lies; a subclass says where, and what for."""

    eps: Annotated[float, Field(ge=0, le=1000)] = 0.05
    """Size of the attack on a sample: its L2 norm, as a share of the embeddings' norm (`relative`) or as it is (`absolute`)."""
    norm: Literal["relative", "absolute"] = "relative"
    """What `eps` is measured in."""
    weight: Annotated[float, Field(ge=0, le=100)] = 1.0
    """Weight of the adversarial loss beside the clean one (0: off)."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        needs=frozenset({"training"}),
        gives=frozenset({"embedding_gradient"}),
        mutates=frozenset({"embeddings"}),
        conflicts=SCORED_EXACTLY,
        passes=1,
        cost=3.0,
    )
    off: ClassVar[Mapping[str, Any]] = {"weight": 0.0}

    _random: Any = PrivateAttr(None)

    def embed(self, embeddings: Tensor, batch: Batch) -> Tensor:
        """Nothing is changed here; the random state is kept, so that further passes see the same dropout."""
        device = embeddings.device
        accelerator = torch.get_device_module(device).get_rng_state(device) if device.type != "cpu" else None
        self._random = (torch.get_rng_state(), accelerator)
        return embeddings

    def sizes(self, embeddings_1TD: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """(N,) largest norm of each sample's change."""
        size_N = torch.full((len(lengths),), self.eps, device=embeddings_1TD.device)
        if self.norm == "relative":
            size_N = size_N * norms_of_samples(embeddings_1TD.detach(), lengths)
        return size_N

    def again(self, forward: Pass, embeddings: Tensor) -> Pass:
        """A pass from other embeddings (1, T, D) under the random state of the first one."""
        with self._same_chance(embeddings.device):
            near = forward.rerun(embeddings)
            _ = near.predictions  # computed here, since a head may have dropout too
        return near

    @contextmanager
    def _same_chance(self, device: torch.device) -> Iterator[None]:
        kind = device.type if device.type != "cpu" else "cuda"
        with torch.random.fork_rng(devices=[device] if device.type != "cpu" else [], device_type=kind):
            if self._random is not None:
                cpu, accelerator = self._random
                torch.set_rng_state(cpu)
                if accelerator is not None:
                    torch.get_device_module(device).set_rng_state(accelerator, device)
            yield

    def gradient_near(self, forward: Pass, delta_1TD: Tensor) -> Tensor:
        """Gradient (1, T, D) of the loss at ``embeddings + delta`` and of nothing else: no weight's gradient is computed."""
        with forward.frozen():
            return self.again(forward, (forward.embeddings + delta_1TD).detach().requires_grad_(True)).embedding_gradient


class LossAttack(Perturbing):
    """Base of attacks that raise the loss; counts the samples whose loss did not fall."""

    _attacked: int = PrivateAttr(0)
    _worse: Any = PrivateAttr(0)

    def compare(self, before: Pass, after: Pass, batch: Batch) -> None:
        """Count the samples that were attacked, and those whose loss is not lower in ``after``."""
        # Not under no_grad: whoever asks for a pass's losses first decides whether they have a graph. These parts have none.
        difference_K = after.losses.per_unit.float() - before.losses.per_unit.float()
        owner_K = before.owners
        difference_N = difference_K.new_zeros(len(batch.lengths)).index_add_(0, owner_K, difference_K)
        counted_N = torch.zeros_like(difference_N, dtype=torch.bool).index_fill_(0, owner_K, True)
        self._attacked += int(counted_N.sum())
        self._worse = self._worse + (difference_N[counted_N] >= -1e-6).sum()

    def state(self) -> dict[str, Any]:
        """The counters behind the proof."""
        return {"attacked": self._attacked, "worse": int(self._worse)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the counters."""
        self._attacked, self._worse = state["attacked"], state["worse"]

    def effect(self) -> Effect:
        """Share of attacked samples whose loss did not fall; holds at 95 % with a non-zero attack."""
        share = int(self._worse) / max(1, self._attacked)
        passed = self._attacked > 0 and share >= HOLDS and self.eps > 0
        return Effect(self.use, "the attack raised the loss", share, passed, f"{self._attacked} samples attacked")


class DivergenceAttack(Perturbing):
    """Base of attacks that need no labels: away from where they start at random, towards where predictions change most."""

    start: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Size of the random start, as a share of `eps` (a divergence has no slope at its lowest point)."""
    steps: Annotated[int, Field(ge=1, le=50)] = 1
    """Steps of the search for the worst direction; each costs a forward and a backward pass."""

    symmetric: ClassVar[bool] = False
    """Whether both directions of the divergence count."""

    _first: Any = PrivateAttr(0.0)
    _last: Any = PrivateAttr(0.0)

    def declare(self) -> Capabilities:
        """Passes and cost grow with the steps."""
        return with_cost(self.capabilities, passes=1 + self.steps, cost=3.0 + 2.0 * self.steps)

    def advance(self, delta_1TD: Tensor, gradient_1TD: Tensor, size_N: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """The next change (1, T, D) from this one and the divergence's gradient there."""
        raise NotImplementedError

    def divergence_near(self, forward: Pass, batch: Batch) -> tuple[Pass, Tensor]:
        """The pass where predictions differ most from the clean ones, and the clean pass's divergence at the random start."""
        lengths, width = batch.lengths, forward.embeddings.shape[-1]
        size_N = self.sizes(forward.embeddings, lengths)
        delta = perturbation(random_direction(batch, self.use, width), self.start * size_N, lengths)
        delta, first = delta.to(forward.embeddings.dtype), torch.zeros(())
        for number in range(self.steps):
            with forward.frozen():
                near = self.again(forward, (forward.embeddings + delta).detach().requires_grad_(True))
                between = forward.divergence(near, symmetric=self.symmetric, fixed=True)
                (gradient,) = torch.autograd.grad(between, near.embeddings)
            first = between.detach() if number == 0 else first
            delta = self.advance(delta, gradient, size_N, lengths)
        return self.again(forward, forward.embeddings + delta), first

    def count(self, first: Tensor, last: Tensor) -> None:
        """Add up the divergence at the random start and that of the attack."""
        self._first = self._first + first.double()
        self._last = self._last + last.detach().double()

    def state(self) -> dict[str, Any]:
        """The sums behind the proof."""
        return {"first": float(self._first), "last": float(self._last)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the sums."""
        self._first, self._last = state["first"], state["last"]

    def effect(self) -> Effect:
        """How much more predictions change along the attack than along random noise of the same size; holds above 1.5.

        Near its lowest point a divergence grows with the square of the size, so the start's is brought to the attack's size.
        """
        noise, attack = float(self._first) / self.start**2, float(self._last)
        ratio = attack / noise if noise > 0 else 0.0
        detail = f"divergence {attack:.3g} along the attack, about {noise:.3g} along noise"
        return Effect(self.use, "the attack changed predictions more than noise of its size", ratio, ratio > MORE, detail)


def with_cost(capabilities: Capabilities, passes: int, cost: float) -> Capabilities:
    """The same declaration with other passes and cost."""
    return replace(capabilities, passes=passes, cost=cost)
