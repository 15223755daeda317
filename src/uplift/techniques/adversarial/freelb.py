"""FreeLB: trains on every point of a short climb away from each sample's embeddings, in place of the sample itself.

When: fine-tuning for understanding (classification, short answers), where it is the strongest of these for its time.
When not: when time is short; when many epochs are cheap, since a pass over new data teaches more than one over a neighbour.
Paper: Zhu et al. 2020, FreeLB: Enhanced Adversarial Training for Natural Language Understanding.
Cost: memory of two graphs and of each pass's gradients of what trains (little with an adapter); time of as many plain steps as
there are passes, and one more with a random start.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from uplift.core.capability import Capabilities
from uplift.core.values import Batch, Pass, Term, Terms
from uplift.techniques.perturbation import LossAttack, perturbation, project, random_direction, with_cost

START = 1.0 / math.sqrt(3.0)
"""Size of a random start as a share of ``eps``: root mean square of the paper's uniform numbers from -eps to eps."""


class Freelb(LossAttack):
    """Replaces the loss by its mean over ``passes`` points; a pass's one backward gives weight gradients and the next point."""

    use: Literal["freelb"] = "freelb"
    weight: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the loss that is replaced by the mean over the passes (0: off)."""
    passes: Annotated[int, Field(ge=1, le=20)] = 3
    """Points whose losses are averaged; the first one is the start."""
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Length of a step from one point to the next, as a share of `eps`."""
    start: Literal["random", "zero"] = "random"
    """Where the climb starts: at random inside the ball, or at the sample itself (cheaper, the clean pass is the first)."""

    off: ClassVar[Mapping[str, Any]] = {"weight": 0.0}

    def declare(self) -> Capabilities:
        """Passes and cost; a random start makes the clean pass an extra one."""
        extra = self.passes - (self.start == "zero")
        return with_cost(self.capabilities, passes=extra, cost=3.0 * extra)

    def terms(self, forward: Pass, batch: Batch) -> Terms:
        """What turns the clean loss into the mean over the passes."""
        if self.weight == 0:
            return {}
        lengths, losses = batch.lengths, []
        size_N = self.sizes(forward.embeddings, lengths)
        delta = self.first_change(forward, batch, size_N)
        first = near = forward if self.start == "zero" else self.again(forward, forward.embeddings + delta)
        for number in range(self.passes):
            if number > 0:
                step = perturbation(near.embedding_gradient, self.alpha * size_N, lengths)
                losses.append(near.losses.cross_entropy)  # now it carries the weights' gradients
                delta = project(delta + step, size_N, lengths)
                near = self.again(forward, forward.embeddings + delta)
        losses.append(near.losses.cross_entropy)
        if self.passes > 1:
            self.compare(first, near, batch)
        replaced = torch.stack(losses).mean() - forward.losses.cross_entropy
        return {self.use: Term(self.weight * replaced, forward.count, forward.unit)}

    def first_change(self, forward: Pass, batch: Batch, size_N: Tensor) -> Tensor:
        """(1, T, D) where the climb starts."""
        if self.start == "zero":
            return torch.zeros_like(forward.embeddings)
        direction = random_direction(batch, self.use, forward.embeddings.shape[-1])
        return perturbation(direction, START * size_N, batch.lengths).to(forward.embeddings.dtype)
