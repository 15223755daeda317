"""Random noise: also trains on a random change of each sample's embeddings, as large as an attack: the control of attacks.

When: beside ``fgm``, ``pgd`` or ``freelb`` in a comparison; what it reaches too, the attack's direction has not earned.
When not: as a method; for noise that lengthens answers use ``neftune``.
Paper: Miyato, Dai and Goodfellow 2017 (section 4.2, the random perturbation baseline).
Cost: memory of two graphs of the batch at once; time 2 of a plain step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import PrivateAttr
from torch import Tensor

from uplift.core.values import Batch, Effect, Pass, Term, Terms
from uplift.techniques.perturbation import Perturbing, norms_of_samples, perturbation, random_direction

TOLERANCE = 1e-3


class RandomNoise(Perturbing):
    """Adds ``weight`` times the loss at ``embeddings + noise``; a sample's noise has exactly the norm of ``fgm``'s attack.

    Noise comes from (seed, step, sample id), so packing and accumulation do not change it.
    """

    use: Literal["random_noise"] = "random_noise"

    _samples: int = PrivateAttr(0)
    _ratios: Any = PrivateAttr(0.0)

    def terms(self, forward: Pass, batch: Batch) -> Terms:
        """The noisy pass's cross-entropy over the same units."""
        if self.weight == 0:
            return {}
        noise = self.noise(batch, forward.embeddings.detach())
        noisy = self.again(forward, forward.embeddings + noise)
        self.measure(noise, self.sizes(forward.embeddings, batch.lengths), batch.lengths)
        return {self.use: Term(self.weight * noisy.losses.cross_entropy, forward.count, forward.unit)}

    def noise(self, batch: Batch, embeddings_1TD: Tensor) -> Tensor:
        """(1, T, D) noise of a packed row."""
        direction = random_direction(batch, self.use, embeddings_1TD.shape[-1])
        return perturbation(direction, self.sizes(embeddings_1TD, batch.lengths), batch.lengths).to(embeddings_1TD.dtype)

    def measure(self, noise_1TD: Tensor, size_N: Tensor, lengths: tuple[int, ...]) -> None:
        """Add up the norms over the stated sizes."""
        norms_N = norms_of_samples(noise_1TD, lengths)
        self._samples += len(lengths)
        self._ratios = self._ratios + (norms_N / size_N.clamp_min(1e-30)).double().sum()

    def state(self) -> dict[str, Any]:
        """The sums behind the proof."""
        return {"samples": self._samples, "ratios": float(self._ratios)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the sums."""
        self._samples, self._ratios = state["samples"], state["ratios"]

    def effect(self) -> Effect:
        """Mean norm of the noise over the stated one; holds within 0.1 % of 1."""
        ratio = float(self._ratios) / max(1, self._samples)
        passed = self._samples > 0 and abs(ratio - 1.0) <= TOLERANCE
        return Effect(self.use, "noise of the stated size was added", ratio, passed, f"{self._samples} samples")
