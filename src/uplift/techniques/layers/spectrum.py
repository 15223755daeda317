"""Spectrum: trains the matrices with the most signal over noise in their singular values, the top share of each kind.

When: nearly full fine-tuning of a decoder at a fraction of the memory, without looking at the task's data.
When not: when the task says where to look (then `surgical`); on models that were never pretrained, which are noise all over.
Paper: Hartford et al. 2024, Spectrum: Targeted Training on Signal to Noise Ratio; Marchenko and Pastur 1967.
Cost: memory of gradients and moments for the chosen share; time 15 s before step 1 for 135 M weights on one core, then less.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from uplift.core.capability import Capabilities
from uplift.core.errors import RecipeError
from uplift.core.technique import Parameters
from uplift.techniques.partial_training import ADAPTER_CLASH, CHOICE, FROZEN_CLASH, PartialTraining, is_hollow, new_head

GRID = 20_000
"""Points of the numerical integral behind the median of the Marchenko-Pastur law."""


@cache
def marchenko_pastur_median(ratio: float) -> float:
    """Median eigenvalue of ``X X^T / m`` for X (n, m) of independent unit-variance noise, ``ratio`` = n / m in (0, 1].

    The density ``sqrt((b - x)(x - a)) / (2 pi ratio x)`` on [a, b] is summed over ``x = a + (b - a) sin^2 t``: smooth there.
    """
    low, high = (1 - math.sqrt(ratio)) ** 2, (1 + math.sqrt(ratio)) ** 2
    t = (torch.arange(GRID, dtype=torch.float64) + 0.5) * (math.pi / 2 / GRID)
    x = low + (high - low) * torch.sin(t).square()
    mass = (torch.sin(2 * t) * (high - low)).square() / x
    total = mass.cumsum(0)
    return float(x[int(torch.searchsorted(total, total[-1] / 2))])


def noise_bound(values: Tensor, rows: int, columns: int) -> float:
    """Largest singular value that noise alone would have: ``s (sqrt(rows) + sqrt(columns))``.

    ``s``, the noise of one element, is what makes the median of the singular values that of the Marchenko-Pastur law; the
    paper takes it from their quartiles, which tells noise from signal only up to a constant.
    """
    small, large = sorted((rows, columns))
    noise = float(values.median()) / math.sqrt(large * marchenko_pastur_median(small / large))
    return noise * (math.sqrt(rows) + math.sqrt(columns))


@torch.no_grad()
def signal_to_noise(weight_OI: Tensor) -> float:
    """Sum of the singular values above the noise bound over the sum of those below, over the largest one."""
    weight_SL = weight_OI.double() if weight_OI.shape[0] <= weight_OI.shape[1] else weight_OI.double().T
    values = torch.linalg.eigvalsh(weight_SL @ weight_SL.T).clamp_min(0).sqrt()
    largest = float(values[-1])
    if largest == 0.0:
        return 0.0
    above = values > noise_bound(values, *weight_OI.shape)
    return float(values[above].sum() / values[~above].sum().clamp_min(1e-30)) / largest


def matrices_by_kind(model: Any) -> dict[str, list[str]]:
    """Weight names of the linear layers inside the blocks, by their path within a block, from the first block to the last."""
    paths = {id(module): path for path, module in model.pretrained.named_modules()}
    kinds: dict[str, list[str]] = {}
    for block in model.layers:
        for path, module in block.named_modules():
            if isinstance(module, nn.Linear | Conv1D):
                kinds.setdefault(path, []).append(f"{paths[id(module)]}.weight")
    return kinds


def top_share(scores: Mapping[str, float], share: float) -> list[str]:
    """The names with the highest scores, a share of all rounded up; of equal ones those that come first."""
    order = sorted(scores, key=lambda name: -scores[name])
    chosen = set(order[: math.ceil(share * len(order) - 1e-9)])
    return [name for name in scores if name in chosen]


class Spectrum(PartialTraining):
    """Trains the chosen matrices and a new classification head; vectors and embeddings stay as they are."""

    use: Literal["spectrum"] = "spectrum"
    share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of the matrices of each kind that trains, rounded up (1: off, all of the model trains)."""

    claim: ClassVar[str] = "only the matrices with the most signal moved"
    capabilities: ClassVar[Capabilities] = Capabilities(
        needs=frozenset({"training"}),
        exclusive=frozenset({CHOICE}),
        conflicts={"adapter": ADAPTER_CLASH, "frozen_layers": FROZEN_CLASH},
    )
    off: ClassVar[Mapping[str, Any]] = {"share": 1.0}

    _table: dict[str, dict[str, float]] = PrivateAttr(default_factory=dict)
    _chosen: dict[str, list[str]] = PrivateAttr(default_factory=dict)

    def choose(self, model: Any) -> dict[str, list[str]]:
        """The chosen weight names by kind; measured once (a plan, which has no numbers, takes the lowest blocks)."""
        if not self._chosen:
            kinds = matrices_by_kind(model)
            if not kinds:
                raise RecipeError("`spectrum` finds no linear layers in this model's blocks", fix="use `freeze`")
            named, hollow = model.parameters_by_name(), is_hollow(model)
            self._table = {
                kind: {name: 0.0 if hollow else signal_to_noise(named[name]) for name in names} for kind, names in kinds.items()
            }
            self._chosen = {kind: top_share(scores, self.share) for kind, scores in self._table.items()}
        return self._chosen

    def frozen(self, model: Any) -> frozenset[str]:
        """Everything that was not chosen."""
        if self.share == 1:
            return frozenset()
        chosen = frozenset(name for names in self.choose(model).values() for name in names)
        return frozenset(model.parameters_by_name()) - chosen - new_head(model)

    def begin(self, model: Any, parameters: Parameters) -> None:
        """Take the checksums, and tell the report what was chosen."""
        super().begin(model, parameters)
        if self._chosen:
            model.notes = (*model.notes, f"`spectrum` trains {self.detail()}")

    def state(self) -> dict[str, Any]:
        """The checksums, and the table behind the choice (which is made again from the same weights)."""
        return {**super().state(), "table": {kind: dict(scores) for kind, scores in self._table.items()}}

    def detail(self) -> str:
        """The chosen blocks of each kind (counted from 1), best first, with the best one's signal to noise."""
        parts = []
        for kind, names in self._chosen.items():
            scores = self._table[kind]
            places = {name: str(place + 1) for place, name in enumerate(scores)}
            best = sorted(names, key=lambda name: -scores[name])
            parts.append(f"{kind.rpartition('.')[2]} of {' '.join(places[name] for name in best)} ({scores[best[0]]:.2g})")
        return "blocks by signal to noise: " + ", ".join(parts) if parts else ""
