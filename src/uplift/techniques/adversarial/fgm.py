"""FGM: also trains on the worst small change of each sample's embeddings, so that the model becomes smooth around its data.

When: classification or short answers on little data; where robustness to small changes of the input counts.
When not: when time is short (it doubles a step); against typing errors, which are not small in embedding space.
Paper: Miyato, Dai and Goodfellow 2017, Adversarial Training Methods for Semi-Supervised Text Classification.
Cost: memory of two graphs of the batch at once; time 2 of a plain step (a second forward and backward pass).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from uplift.core.values import Batch, Pass, Term, Terms
from uplift.techniques.perturbation import LossAttack, perturbation


class Fgm(LossAttack):
    """Adds ``weight`` times the loss at ``embeddings + delta``, with delta along the gradient of the clean loss.

    The attack is on embedding outputs, per sample; the embedding matrix (and a tied head) is never touched.
    """

    use: Literal["fgm"] = "fgm"

    def terms(self, forward: Pass, batch: Batch) -> Terms:
        """The attacked pass's cross-entropy over the same units."""
        if self.weight == 0:
            return {}
        delta = self.attack(forward.embedding_gradient, forward.embeddings.detach(), batch.lengths)
        attacked = self.again(forward, forward.embeddings + delta)
        self.compare(forward, attacked, batch)
        return {self.use: Term(self.weight * attacked.losses.cross_entropy, forward.count, forward.unit)}

    def attack(self, gradient_1TD: Tensor, embeddings_1TD: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """The perturbation (1, T, D) of a packed row."""
        return perturbation(gradient_1TD, self.sizes(embeddings_1TD, lengths), lengths)
