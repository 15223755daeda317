"""Hidden-state matching: the outputs of the model's blocks come to resemble those of a teacher's blocks.

When: a student that is initialised from its teacher (pruned, fewer blocks), beside `distill`; little data, long training.
When not: the student has little room of its own (matching all of a wide teacher takes it up); another tokenizer.
Paper: Romero et al. 2015, FitNets; Jiao et al. 2020, TinyBERT; Sun et al. 2019, Patient Knowledge Distillation.
Cost: memory of the teacher, and of one matrix per matched block while it trains; time of one forward of the teacher per step.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import PrivateAttr
from torch import Tensor, nn

from uplift.core.errors import RecipeError
from uplift.core.technique import Parameters
from uplift.core.values import Batch, Pass, Term, Terms
from uplift.techniques.matching import LayerPair, Matched, token_weights
from uplift.techniques.partial_training import is_hollow

PROJECTION = "match_hidden"
"""The name under which projections hang on the model while they train."""


def even_pairs(student: int, teacher: int) -> list[tuple[int, int]]:
    """(student's layer, teacher's layer), counted from 1: as many as the smaller one has, evenly spread, last with last."""
    count = min(student, teacher)
    return [(round(k * student / count), round(k * teacher / count)) for k in range(1, count + 1)]


def distance(states_TD: Tensor, teacher_TD: Tensor, loss: str) -> Tensor:
    """(T,) how far the states are: squared error as a share of the teacher's mean square, or 1 - cosine."""
    if loss == "cosine":
        return 1.0 - nn.functional.cosine_similarity(states_TD.float(), teacher_TD.float(), dim=-1)
    wanted = teacher_TD.float()
    return (states_TD.float() - wanted).square().mean(-1) / wanted.square().mean(-1).clamp_min(1e-12)


class MatchHidden(Matched):
    """Adds ``strength`` times the distance between hidden states, the mean over matched layers, at every trained place.

    Where widths differ, a matrix per layer maps the model's states into the teacher's space; it trains and is not saved.
    """

    use: Literal["match_hidden"] = "match_hidden"
    layers: list[LayerPair] = []
    """Pairs [layer of the model, layer of the teacher], counted from 1; default: evenly spread, last with last."""
    loss: Literal["mse", "cosine"] = "mse"
    """`mse`: squared error as a share of the teacher's mean square; `cosine`: directions alone."""

    watched: ClassVar[str] = "layer_outputs"
    claim: ClassVar[str] = "hidden states were pulled towards the teacher's"
    otherwise: ClassVar[str] = "match predictions instead, with `distill`"

    _projections: nn.ModuleList | None = PrivateAttr(None)

    def pairs_of(self, student: int, teacher: int) -> list[tuple[int, int]]:
        """Those that were named, or evenly spread ones."""
        return [(mine, its) for mine, its in self.layers] or even_pairs(student, teacher)

    def edit(self, model: Any) -> Any:
        """Open the teacher, and hang the projections on the model. Raises RecipeError for layers that are not there."""
        if not self.active or is_hollow(model):
            return model
        model = super().edit(model)
        (teacher,) = self._models
        widths = [each.config.get_text_config().hidden_size for each in (model, teacher)]
        if widths[0] != widths[1]:
            made = [nn.Linear(widths[0], widths[1], bias=False, device=model.device) for _ in self._pairs]
            for projection in made:
                nn.init.orthogonal_(projection.weight)
            self._projections = nn.ModuleList(made)
            setattr(model.pretrained, PROJECTION, self._projections)
        return model

    def begin(self, model: Any, parameters: Parameters) -> None:
        """Watch the layers of both. Raises RecipeError when the projections would stand still."""
        if not self.active:
            return
        super().begin(model, parameters)
        missing = [name for name in model.parameters_by_name() if name.startswith(PROJECTION) and name not in parameters]
        if missing:
            why = "the widths differ, and another technique freezes the matrices between them"
            fix = "remove what chooses the layers to train"
            raise RecipeError("`match_hidden` cannot learn its projections", why=why, fix=fix)
        model.tap(mine for mine, _ in self._pairs)
        self._models[0].tap(its for _, its in self._pairs)

    def terms(self, forward: Pass, batch: Batch) -> Terms:
        """The distance of this batch's states."""
        if not self.active:
            return {}
        taught = forward.under(self._models[0])
        weights_T = token_weights(forward, batch)
        kept = torch.nonzero(weights_T, as_tuple=True)[0]
        sums = []
        for place, (mine, its) in enumerate(self._pairs):
            states = forward.layers[mine][0, kept]
            states = states if self._projections is None else self._projections[place](states)
            sums.append((distance(states, taught.layers[its][0, kept], self.loss) * weights_T[kept]).sum())
        return {self.use: Term(self.strength * torch.stack(sums).mean(), forward.count, forward.unit)}

    def finish(self, model: Any) -> Any:
        """Take the projections off the model, and look whether the teacher stayed as it was."""
        if self.active and self._models:
            model.tap([])
            self._models[0].tap([])
        if self._projections is not None:
            delattr(model.pretrained, PROJECTION)
            self._projections = None
        return super().finish(model)
