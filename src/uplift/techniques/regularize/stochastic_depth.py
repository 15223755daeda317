"""Stochastic depth: in training, each document skips whole blocks at random, later blocks more often.

When: deep models on several epochs of few rows; as the source of chance that ``r_drop`` compares.
When not: for models of few blocks, where one is much; for a single epoch.
Paper: Huang et al. 2016, Deep Networks with Stochastic Depth; Fan, Grave and Joulin 2020, LayerDrop.
Cost: memory one more hidden state per block; time about none, and none is saved: the blocks run for the other documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from uplift.core.values import Effect
from uplift.techniques.chance import LayerChance, documents_of

SIGMAS = 5.0


def drop_rates(p: float, layers: int) -> list[float]:
    """Chance of each block to be skipped: growing linearly to ``p`` at the last one, ``p * l / L`` for l = 1..L."""
    return [p * (index + 1) / layers for index in range(layers)]


def skipped(output: Tensor, given: Tensor, kept: Tensor, rate: float) -> Tensor:
    """``given + kept / (1 - rate) * (output - given)``: the block's change, dropped or scaled up; its mean is ``output``.

    ``kept`` is 0 or 1 and broadcasts over the states (B, T, D).
    """
    return torch.lerp(given, output, kept.to(output.dtype) / (1.0 - rate))


class StochasticDepth(LayerChance):
    """Skips a block's change for whole documents and scales up the others, so evaluation is the plain model."""

    use: Literal["stochastic_depth"] = "stochastic_depth"
    p: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Chance of the last block to be skipped (0: off); earlier blocks have less, in proportion to their depth."""

    off: ClassVar[Mapping[str, Any]] = {"p": 0.0}

    _rates: list[float] = PrivateAttr(default_factory=list)

    def edit(self, model: Any) -> Any:
        """Hook every block."""
        if self.p == 0:
            return model
        self._rates = drop_rates(self.p, len(model.layers))
        self._seen = torch.zeros(len(self._rates), 2, dtype=torch.int64, device=model.device)
        for index, block in enumerate(model.layers):
            self.hook(block, self._of_block(index))
        return model

    def _of_block(self, index: int) -> Any:
        @torch.compiler.disable
        def change(output: Tensor, given: Tensor, options: dict[str, Any]) -> Tensor:
            lengths, rate = documents_of(output, options), self._rates[index]
            kept_N = torch.rand(len(lengths or output), device=output.device) >= rate
            self._seen[index, 0].add_((~kept_N).sum())
            self._seen[index, 1].add_(len(kept_N))
            if lengths is None:
                return skipped(output, given, kept_N[:, None, None], rate)
            kept_T = kept_N.repeat_interleave(torch.tensor(lengths, device=output.device), output_size=output.shape[1])
            return skipped(output, given, kept_T[None, :, None], rate)

        return change

    def effect(self) -> Effect:
        """Skipped share of all (document, block) pairs; holds within five standard deviations of what was asked."""
        counts = self.state()["seen"]
        skips, total = (sum(row[column] for row in counts) for column in (0, 1))
        expected = sum(rate * seen for rate, (_, seen) in zip(self._rates, counts, strict=True))
        spread = sum(rate * (1 - rate) * seen for rate, (_, seen) in zip(self._rates, counts, strict=True)) ** 0.5
        passed = skips > 0 and abs(skips - expected) <= SIGMAS * spread
        detail = f"{skips} of {total} passes of a document through a block, {expected:.0f} expected"
        return Effect(self.use, "documents skipped blocks", skips / max(1, total), passed, detail)
