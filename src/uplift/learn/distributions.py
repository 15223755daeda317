"""What two passes predict, compared; and how sure one is. In chunks: the (K, V) logits never exist as a whole.

Shape legend: K trained units, k of one chunk, D hidden width, V vocabulary or classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from uplift.learn.linear_loss import chunk_rows


@dataclass(frozen=True)
class Predictions:
    """Log-probabilities of K units: of a linear head (V, D) over ``hidden`` (K, D), or of known ``logits`` (K, V)."""

    hidden: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    logits: Tensor | None = None

    def __len__(self) -> int:
        given = self.hidden if self.logits is None else self.logits
        assert given is not None
        return len(given)

    def chunks(self) -> Iterator[slice]:
        """Slices of the units, small enough for memory."""
        rows = chunk_rows(self.weight) if self.weight is not None else max(1, len(self))
        return (slice(begin, end) for begin, end in pairwise([*range(0, len(self), rows), len(self)]))

    def scores(self, part: slice) -> Tensor:
        """(k, V) logits in float32 or better."""
        if self.logits is not None:
            return _wide(self.logits[part])
        assert self.hidden is not None and self.weight is not None
        return scores_of(self.hidden[part], self.weight, self.bias, self.scale, self.softcap)

    def log_probabilities(self, part: slice) -> Tensor:
        """(k, V) in float32 or better."""
        return self.scores(part).log_softmax(-1)

    def rearranged(self, order_K: Tensor) -> Predictions:
        """The same predictions in another order: unit i gets those of unit ``order_K[i]``."""
        hidden, logits = (None if value is None else value[order_K] for value in (self.hidden, self.logits))
        return replace(self, hidden=hidden, logits=logits)

    def detached(self) -> Predictions:
        """The same predictions as constants."""
        given = (self.hidden, self.weight, self.bias, self.logits)
        hidden, weight, bias, logits = (None if value is None else value.detach() for value in given)
        return Predictions(hidden, weight, bias, self.scale, self.softcap, logits)


def scores_of(hidden_kD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    """(k, V) logits of a linear head in float32 or better."""
    weight_VD, bias_V = weight_VD.to(hidden_kD.dtype), None if bias_V is None else bias_V.to(hidden_kD.dtype)
    logits = _wide(F.linear(hidden_kD, weight_VD, bias_V))
    logits = logits if scale == 1.0 else logits * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def kl_divergence(p: Predictions, q: Predictions, weights_K: Tensor) -> Tensor:
    """``sum_k w_k KL(p_k || q_k)`` in nats; gradients reach both sides. Raises ValueError for different numbers of units."""
    return _summed(p, weights_K, lambda part: _kl(p.log_probabilities(part), q.log_probabilities(part)), len(q))


def symmetric_divergence(p: Predictions, q: Predictions, weights_K: Tensor) -> Tensor:
    """``sum_k w_k (KL(p_k || q_k) + KL(q_k || p_k))`` in nats."""

    def both(part: slice) -> Tensor:
        log_p, log_q = p.log_probabilities(part), q.log_probabilities(part)
        return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1)

    return _summed(p, weights_K, both, len(q))


def jensen_shannon(p: Predictions, q: Predictions, weights_K: Tensor) -> Tensor:
    """``sum_k w_k JS(p_k, q_k)`` in nats: the mean of both KL divergences from their mean; gradients reach both."""

    def one(part: slice) -> Tensor:
        log_p, log_q = p.log_probabilities(part), q.log_probabilities(part)
        # ln(p / m) = ln 2 - softplus(ln q - ln p): exactly 0 where both are equal.
        from_p = math.log(2.0) - F.softplus(log_q - log_p)
        from_q = math.log(2.0) - F.softplus(log_p - log_q)
        return 0.5 * (log_p.exp() * from_p + log_q.exp() * from_q).sum(-1)

    return _summed(p, weights_K, one, len(q))


def entropy(p: Predictions, weights_K: Tensor) -> Tensor:
    """``sum_k w_k H(p_k)`` in nats."""

    def one(part: slice) -> Tensor:
        log_p = p.log_probabilities(part)
        return -(log_p.exp() * log_p).sum(-1)

    return _summed(p, weights_K, one, len(p))


def squared_log_normaliser(p: Predictions, weights_K: Tensor) -> Tensor:
    """``sum_k w_k (log Z_k)^2`` with ``Z_k`` the sum of the exponentials of unit k's logits."""
    return _summed(p, weights_K, lambda part: p.scores(part).logsumexp(-1).square(), len(p))


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _summed(p: Predictions, weights_K: Tensor, of: Callable[[slice], Tensor], others: int) -> Tensor:
    """Weighted sum over all chunks; each chunk's logits are made again in the backward pass."""
    if not len(p) == others == len(weights_K):
        raise ValueError(f"{len(p)}, {others} and {len(weights_K)} units cannot be compared")
    parts = [(checkpoint(of, part, use_reentrant=False) * weights_K[part]).sum() for part in p.chunks()]
    return torch.stack(parts).sum() if parts else weights_K.sum() * 0.0
