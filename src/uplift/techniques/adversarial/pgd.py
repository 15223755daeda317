"""PGD: also trains on a change of each sample's embeddings that was searched in several steps within a ball.

When: robustness to strong embedding attacks counts, and ``fgm`` (one step) is not enough.
When not: when time is short; for clean accuracy alone, where ``fgm`` or ``freelb`` give as much for less.
Paper: Madry et al. 2018, Towards Deep Learning Models Resistant to Adversarial Attacks.
Cost: memory of two graphs of the batch at once; time 2 of a plain step, and 0.65 (adapter: 0.95) more for each further step.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from uplift.core.capability import Capabilities
from uplift.core.values import Batch, Pass, Term, Terms
from uplift.techniques.perturbation import LossAttack, perturbation, project, with_cost


class Pgd(LossAttack):
    """Adds ``weight`` times the loss at the last of ``steps`` changes, each along the loss's gradient at the one before."""

    use: Literal["pgd"] = "pgd"
    steps: Annotated[int, Field(ge=1, le=50)] = 3
    """Steps of the search; the model is trained on the last one only."""
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Length of a step as a share of `eps`; with 1 step and 1.0 this is `fgm`."""

    def declare(self) -> Capabilities:
        """Passes and cost grow with the steps."""
        return with_cost(self.capabilities, passes=self.steps, cost=3.0 + 2.0 * (self.steps - 1))

    def terms(self, forward: Pass, batch: Batch) -> Terms:
        """The cross-entropy at the last change, over the same units."""
        if self.weight == 0:
            return {}
        attacked = self.again(forward, forward.embeddings + self.attack(forward, batch.lengths))
        self.compare(forward, attacked, batch)
        return {self.use: Term(self.weight * attacked.losses.cross_entropy, forward.count, forward.unit)}

    def attack(self, forward: Pass, lengths: tuple[int, ...]) -> Tensor:
        """The change (1, T, D) after all steps, at most ``eps`` in every sample."""
        size_N = self.sizes(forward.embeddings, lengths)
        delta = perturbation(forward.embedding_gradient, self.alpha * size_N, lengths)
        for _ in range(self.steps - 1):
            step = perturbation(self.gradient_near(forward, delta), self.alpha * size_N, lengths)
            delta = project(delta + step, size_N, lengths)
        return delta
