"""Virtual adversarial training: predictions stay the same under the worst small change of the embeddings; no label is asked.

When: language modelling and chat (as ALUM) or classification on few labels; where predictions should be smooth.
When not: when time is short; where the model must react to small differences of the input.
Paper: Miyato et al. 2018, Virtual Adversarial Training; Liu et al. 2020, ALUM: Adversarial Training for Large Language Models.
Cost: memory of two graphs of the batch at once; time 2 of a plain step, and 0.65 (adapter: 0.95) more for each search step.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from uplift.core.values import Batch, Pass, Term, Terms
from uplift.techniques.perturbation import DivergenceAttack, perturbation


class VirtualAdversarial(DivergenceAttack):
    """Adds ``weight`` times KL(clean, held constant || attacked), summed over the trained units.

    The direction is found as in the paper, by power iteration: the divergence's gradient at the last guess, at full size.
    """

    use: Literal["virtual_adversarial"] = "virtual_adversarial"

    def terms(self, forward: Pass, batch: Batch) -> Terms:
        """The divergence under the attack."""
        if self.weight == 0 or self.eps == 0:
            return {}
        attacked, first = self.divergence_near(forward, batch)
        between = forward.divergence(attacked, fixed=True)
        self.count(first, between)
        return {self.use: Term(self.weight * between, forward.count, forward.unit)}

    def advance(self, delta_1TD: Tensor, gradient_1TD: Tensor, size_N: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """The gradient's direction at full size (1, T, D)."""
        return perturbation(gradient_1TD, size_N, lengths)
