"""FGM: also trains on the worst small change of each sample's embeddings, so that the model becomes smooth around its data.

When: classification or short answers on little data; where robustness to small changes of the input counts.
When not: when time is short (it more than doubles a step); against typing errors, which are not small in embedding space.
Paper: Miyato, Dai and Goodfellow 2017, Adversarial Training Methods for Semi-Supervised Text Classification.
Cost: memory of two graphs of the batch at once; time about 2.3 of a plain step (one more forward, two more backwards).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from uplift.core.capability import Capabilities
from uplift.core.technique import Technique
from uplift.core.values import Batch, Effect, Pass, Term, Terms

HOLDS = 0.95
"""Share of samples whose loss must not fall under the attack; a wrong sign would bring it near 0."""


def sample_of_token(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """(T,) index of the sample each token of a packed row belongs to."""
    sizes = torch.tensor(lengths, device=device)
    return torch.repeat_interleave(torch.arange(len(lengths), device=device), sizes, output_size=sum(lengths))


def norms_of_samples(values_1TD: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """(N,) L2 norm of each sample's part of a packed row, in float32."""
    squares_T = values_1TD[0].float().pow(2).sum(-1)
    return squares_T.new_zeros(len(lengths)).index_add_(0, sample_of_token(lengths, squares_T.device), squares_T).sqrt()


def perturbation(gradient_1TD: Tensor, size_N: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """``size * g / ||g||`` for each sample on its own (1, T, D); zero where a sample's gradient is zero."""
    norms_N = norms_of_samples(gradient_1TD, lengths)
    factor_N = torch.where(norms_N > 0, size_N / norms_N.clamp_min(1e-30), torch.zeros_like(norms_N))
    factor_T = factor_N[sample_of_token(lengths, factor_N.device)]
    return gradient_1TD * factor_T[None, :, None].to(gradient_1TD.dtype)


class Fgm(Technique):
    """Adds ``weight`` times the loss at ``embeddings + delta``, with delta along the gradient of the clean loss.

    The attack is on embedding outputs, per sample; the embedding matrix (and a tied head) is never touched.
    """

    use: Literal["fgm"] = "fgm"
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
        passes=1,
        cost=4.0,
    )
    off: ClassVar[Mapping[str, Any]] = {"weight": 0.0}

    _random: Any = PrivateAttr(None)
    _attacked: int = PrivateAttr(0)
    _worse: Any = PrivateAttr(0)

    def embed(self, embeddings: Tensor, batch: Batch) -> Tensor:
        """Nothing is changed here; the random state is kept, so the attacked pass sees the same dropout."""
        device = embeddings.device
        accelerator = torch.get_device_module(device).get_rng_state(device) if device.type != "cpu" else None
        self._random = (torch.get_rng_state(), accelerator)
        return embeddings

    def terms(self, forward: Pass, batch: Batch) -> Terms:
        """The attacked pass's cross-entropy over the same units."""
        if self.weight == 0:
            return {}
        clean = forward.losses.cross_entropy
        (gradient,) = torch.autograd.grad(clean, forward.embeddings, retain_graph=True)
        attacked = self._rerun(forward, forward.embeddings + self.attack(gradient, forward.embeddings.detach(), batch.lengths))
        self._compare(forward, attacked, batch)
        return {self.use: Term(self.weight * attacked.losses.cross_entropy, forward.count, forward.unit)}

    def attack(self, gradient_1TD: Tensor, embeddings_1TD: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """The perturbation (1, T, D) of a packed row."""
        size_N = torch.full((len(lengths),), self.eps, device=gradient_1TD.device)
        if self.norm == "relative":
            size_N = size_N * norms_of_samples(embeddings_1TD, lengths)
        return perturbation(gradient_1TD, size_N, lengths)

    def _rerun(self, forward: Pass, embeddings: Tensor) -> Pass:
        """A pass from other embeddings under the random state of the first one."""
        device = embeddings.device
        kind = device.type if device.type != "cpu" else "cuda"
        with torch.random.fork_rng(devices=[device] if device.type != "cpu" else [], device_type=kind):
            if self._random is not None:
                cpu, accelerator = self._random
                torch.set_rng_state(cpu)
                if accelerator is not None:
                    torch.get_device_module(device).set_rng_state(accelerator, device)
            attacked = forward.rerun(embeddings)
            _ = attacked.losses  # computed here, under the same random state
        return attacked

    @torch.no_grad()
    def _compare(self, forward: Pass, attacked: Pass, batch: Batch) -> None:
        """Count the samples whose loss did not fall."""
        clean_K, hurt_K = forward.losses.per_unit.float(), attacked.losses.per_unit.float()
        if forward.unit == "tokens":
            owner_K = sample_of_token(batch.lengths, clean_K.device)[torch.nonzero(batch.weights[0], as_tuple=True)[0]]
            difference_N = clean_K.new_zeros(len(batch.lengths)).index_add_(0, owner_K, hurt_K - clean_K)
            counted_N = torch.zeros_like(difference_N, dtype=torch.bool).index_fill_(0, owner_K, True)
            difference_N, attackable = difference_N[counted_N], int(counted_N.sum())
        else:
            difference_N, attackable = hurt_K - clean_K, len(clean_K)
        self._attacked += attackable
        self._worse = self._worse + (difference_N >= -1e-6).sum()

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
