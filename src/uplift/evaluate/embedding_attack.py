"""Attacks on the embeddings of a row's text: projected gradient steps in a ball, and noise of the same norm as its control.

The ball is each row's own: its radius is a share of the norm of the text's embeddings, so that a model cannot become robust by
growing them. N rows, S attacked tokens of a packed line, D embedding width.
Paper: Madry et al. 2018, Towards Deep Learning Models Resistant to Adversarial Attacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uplift.core.values import derive_seed
from uplift.evaluate.victim import Shaken, Target, Victim
from uplift.techniques.perturbation import norms_of_samples, perturbation, project, scaled

STEP = 2.5
"""Length of all steps together, in radii: enough to cross the ball and to go along its surface."""


@dataclass(frozen=True)
class Pushed:
    """What one attack did to each row (N,): the model's answers at the end, the largest L2 norm of a shift, and forwards."""

    predicted: NDArray[np.int64]
    norms: NDArray[np.float64]
    queries: NDArray[np.int64]


def noise(targets: Sequence[Target], shaken: Shaken, seed: int) -> Tensor:
    """(S, D) a random direction for each row, of norm 1, drawn from (``seed``, row id)."""
    clean_SD = shaken.zeros()
    parts = []
    for target, size in zip(targets, shaken.lengths, strict=True):
        generator = torch.Generator().manual_seed(derive_seed(seed, target.id, "embedding"))
        parts.append(torch.randn(size, clean_SD.shape[1], generator=generator))
    ones_N = torch.ones(len(targets), device=clean_SD.device)
    return perturbation(torch.cat(parts).to(clean_SD)[None], ones_N, shaken.lengths)[0]


def push(victim: Victim, targets: Sequence[Target], eps: float, steps: int, seed: int) -> dict[str, Pushed]:
    """``noise`` and ``pgd`` with radius ``eps`` times the norm of each row's embeddings.

    PGD starts at the noise and counts a row as misled if it was on the way, so it never does less than the noise. ``eps`` 0
    leaves the rows as they are.
    """
    found = {name: _empty(len(targets), queries) for name, queries in (("noise", 1), ("pgd", 1 + steps))}
    for group, shaken in victim.shaken(targets):
        chosen, lengths = [targets[i] for i in group], shaken.lengths
        radius_N = eps * norms_of_samples(shaken.embeddings[None], lengths)
        delta_SD = scaled(noise(chosen, shaken, seed)[None], radius_N, lengths)[0]
        truth = np.array([target.truth for target in chosen])
        scores, gradient_SD = shaken.scores_and_gradient(delta_SD)
        predicted, largest = _answers(scores), _norms(delta_SD, shaken)
        _put(found["noise"], group, predicted, largest)
        for _ in range(steps):
            step_1SD = perturbation(gradient_SD[None], radius_N * STEP / steps, lengths)
            delta_SD = project(delta_SD[None] - step_1SD, radius_N, lengths)[0]
            scores, gradient_SD = shaken.scores_and_gradient(delta_SD)
            # A row that was misled stays misled.
            predicted = np.where(predicted == truth, _answers(scores), predicted)
            largest = np.maximum(largest, _norms(delta_SD, shaken))
        _put(found["pgd"], group, predicted, largest)
    return found


def _empty(rows: int, queries: int) -> Pushed:
    return Pushed(np.zeros(rows, dtype=np.int64), np.zeros(rows), np.full(rows, queries))


def _put(pushed: Pushed, group: Sequence[int], predicted: NDArray[np.int64], norms: NDArray[np.float64]) -> None:
    pushed.predicted[group], pushed.norms[group] = predicted, norms


def _answers(scores_NC: Tensor) -> NDArray[np.int64]:
    return scores_NC.argmax(1).cpu().numpy()


def _norms(delta_SD: Tensor, shaken: Shaken) -> NDArray[np.float64]:
    return norms_of_samples(delta_SD[None], shaken.lengths).double().cpu().numpy()
