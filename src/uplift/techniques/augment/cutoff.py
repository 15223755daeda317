"""Cutoff: runs every batch a second time with a part of each text blanked out, and asks for the same answer from what is left.

When: fine-tuning on few rows, where one word often gives the answer away; a cheap alternative to writing more rows.
When not: where each word counts (numbers, negations, very short texts); when the doubled time is better spent on epochs.
Paper: Shen et al. 2020, A Simple but Tough-to-Beat Data Augmentation Approach for Natural Language Understanding.
Cost: memory of two graphs of the batch at once; time 2 of a plain step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from uplift.core.capability import Capabilities
from uplift.core.technique import Technique
from uplift.core.values import Batch, Effect, Pass, Progress, Term, Terms
from uplift.data.packing import sample_generator
from uplift.learn.distributions import jensen_shannon
from uplift.techniques.perturbation import SCORED_EXACTLY

Kind = Literal["token", "feature", "span"]


def kept_part(kind: Kind, share: float, free_L: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """(L, 1) or (1, D) of a sample: 0 where embeddings are blanked, 1 elsewhere.

    ``free_L``: places that may be blanked. round(share * their number) of them are, as one stretch for ``span``; for
    ``feature`` round(share * D) entries of the embeddings, the same ones at all places.
    """
    device = free_L.device
    if kind == "feature":
        kept_D = torch.ones(width, device=device)
        kept_D[torch.randperm(width, generator=generator, device=device)[: round(share * width)]] = 0.0
        return torch.where(free_L[:, None], kept_D[None], 1.0)
    places = torch.nonzero(free_L, as_tuple=True)[0]
    count = round(share * len(places))
    kept_L = torch.ones(len(free_L), device=device)
    if kind == "token":
        chosen = places[torch.randperm(len(places), generator=generator, device=device)[:count]]
    else:
        first = int(torch.randint(len(places) - count + 1, (), generator=generator, device=device))
        chosen = places[first : first + count]
    kept_L[chosen] = 0.0
    return kept_L[:, None]


class Cutoff(Technique):
    """Adds `weight` times the loss of the blanked texts, and `consistency` times the Jensen-Shannon divergence between both.

    What the model is to write is never blanked, except in plain text, where it is all there is.
    """

    use: Literal["cutoff"] = "cutoff"
    kind: Kind = "span"
    """What is blanked: `token`, single tokens; `span`, one stretch of them; `feature`, entries of all embeddings."""
    share: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Share of a text that is blanked (0: off)."""
    weight: Annotated[float, Field(ge=0, le=100)] = 1.0
    """Weight of the blanked texts' own loss."""
    consistency: Annotated[float, Field(ge=0, le=100)] = 1.0
    """Weight of the divergence between the predictions of the whole and the blanked texts."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        needs=frozenset({"training"}),
        gives=frozenset({"random_layers"}),  # what is blanked changes at every step: no layer's outputs can be kept
        mutates=frozenset({"consistency", "embeddings"}),
        conflicts=SCORED_EXACTLY,
        passes=1,
        cost=3.0,
    )
    off: ClassVar[Mapping[str, Any]] = {"share": 0.0}

    _steps: int = PrivateAttr(0)
    _differing: int = PrivateAttr(0)
    _total: float = PrivateAttr(0.0)
    _blanked: int = PrivateAttr(0)
    _places: int = PrivateAttr(0)

    def terms(self, forward: Pass, batch: Batch) -> Terms:
        """The loss of the blanked texts, and how far their predictions are from those of the whole ones."""
        if self.share == 0:
            return {}
        kept_1TD = self.kept(batch, forward.embeddings.shape[-1])
        self._blanked += int((kept_1TD == 0).sum())
        self._places += kept_1TD.numel()
        cut = forward.rerun(forward.embeddings * kept_1TD.to(forward.embeddings.dtype))
        between = jensen_shannon(forward.predictions, cut.predictions, forward.unit_weights)
        return {
            self.use: Term(self.weight * cut.losses.cross_entropy, forward.count, forward.unit),
            f"{self.use}_divergence": Term(self.consistency * between, forward.count, forward.unit),
        }

    def kept(self, batch: Batch, width: int) -> Tensor:
        """(1, T, D) of zeros and ones: a function of (seed, step, sample id) for each sample."""
        learned_T = batch.weights[0].roll(1) > 0  # a weight stands one place before the token that it is for
        parts = []
        for index, free_L in enumerate((~learned_T).split(list(batch.lengths))):
            free_L = free_L.clone()
            free_L[0] = True  # nothing predicts the first token; what was rolled there is another sample's
            free_L = free_L if int(free_L.sum()) > 1 else torch.ones_like(free_L)
            generator = sample_generator(batch, self.use, index)
            parts.append(kept_part(self.kind, self.share, free_L, width, generator).expand(len(free_L), width))
        return torch.cat(parts)[None]

    def observe(self, progress: Progress, metrics: Mapping[str, float]) -> list[Any]:
        """Count the steps whose predictions changed, and by how much."""
        found = metrics.get(f"loss_{self.use}", 0.0) * (self.consistency == 0) + metrics.get(f"loss_{self.use}_divergence", 0.0)
        self._steps, self._differing, self._total = self._steps + 1, self._differing + (found > 0), self._total + found
        return []

    def state(self) -> dict[str, Any]:
        """The sums behind the proof."""
        counted = {"steps": self._steps, "differing": self._differing, "total": self._total}
        return counted | {"blanked": self._blanked, "places": self._places}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the sums."""
        self._steps, self._differing, self._total = state["steps"], state["differing"], state["total"]
        self._blanked, self._places = state["blanked"], state["places"]

    def effect(self) -> Effect:
        """Mean change per unit; holds when parts were blanked and nearly all steps predicted otherwise without them."""
        value = self._total / max(1, self._steps)
        passed = self._blanked > 0 and self._differing > 0 and self._differing >= 0.9 * (self._steps - 1)
        share = self._blanked / max(1, self._places)
        detail = f"{share:.1%} of the embeddings blanked; {self._differing} of {self._steps} steps predicted otherwise"
        return Effect(self.use, "predictions were compared with those of blanked texts", value, passed, detail)
