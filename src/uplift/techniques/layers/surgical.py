"""Surgical fine-tuning: trains only the blocks that the task's own data pull hardest, measured before step 1.

When: little data and a shift that sits in one place: new input (low blocks), new labels or style (high blocks).
When not: with much data, or when the whole model must move; the choice is made once, before training.
Paper: Lee et al. 2023, Surgical Fine-Tuning Improves Adaptation to Distribution Shifts (automatic choice: Auto-RGN).
Cost: memory of one full gradient once, then of the chosen share; time before step 1: one backward over `rows` rows, with
`by: trial` 20 of them for each unit; then less.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr

from uplift.core.capability import Capabilities
from uplift.core.errors import RecipeError
from uplift.core.technique import Parameters
from uplift.core.values import Corpus, Encoded, Progress, Unit, derive_seed
from uplift.data.packing import pack, split_micro
from uplift.learn.forward import ForwardPass
from uplift.techniques.calibration import MICRO_TOKENS, training_rows
from uplift.techniques.fingerprint import total_norm
from uplift.techniques.layers.spectrum import top_share
from uplift.techniques.partial_training import (
    ADAPTER_CLASH,
    CHOICE,
    FROZEN_CLASH,
    PartialTraining,
    is_hollow,
    new_head,
    seed_of_run,
)

SHOWN = 12
"""Units listed in the report, highest first."""
TRIAL_STEPS, TRIAL_SIZE = 20, 0.03
"""A trial takes so many steps; each moves every tensor by this share of its norm."""
MEASURES = {"gradient": "gradient over weight norm", "trial": "loss saved in a trial, nats", "random": "drawn at random"}


def mean_loss(model: Any, rows: list[Encoded], gradients: bool = True) -> float:
    """The task's mean loss over ``rows``, no dropout; its gradients are left in ``.grad`` of all parameters where asked."""
    batches = [pack(part, device=model.device, progress=Progress(), seed=0) for part in split_micro(rows, MICRO_TOKENS)]
    unit: Unit = "samples" if model.head_kind == "class" else "tokens"
    total = sum(batch.counts[unit] for batch in batches)
    if total == 0:
        raise RecipeError("`surgical` found nothing to learn in the rows it looked at", fix="raise `surgical.rows`")
    loss = 0.0
    with torch.set_grad_enabled(gradients):
        for batch in batches:
            part = ForwardPass(model, batch, model.embed(batch.ids)).losses.cross_entropy / total
            if gradients:
                part.backward()
            loss += part.item()
    return loss


@torch.no_grad()
def step_down(parameters: Iterable[torch.nn.Parameter], size: float) -> None:
    """Move each tensor against its gradient by ``size`` times its own norm, whatever the gradient's; gradients are spent."""
    for parameter in parameters:
        length = None if parameter.grad is None else parameter.grad.norm()
        if length is not None and length > 0:
            parameter.sub_(parameter.grad, alpha=size * float(parameter.norm() / length))  # type: ignore[arg-type]
        parameter.grad = None


NEW_CLASH = (
    "nothing has been learned yet that a part of the model could keep",
    "remove one of the two: all of a new model has to train",
)


class Surgical(PartialTraining):
    """Ranks embeddings, blocks and an own language head by gradient norm over weight norm and trains the top share.

    A new classification head always trains; so does the final norm with a chosen language head.
    """

    use: Literal["surgical"] = "surgical"
    share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of the units (embeddings, each block, an own language head) that trains, rounded up (1: off, all train)."""
    rows: Annotated[int, Field(ge=1, le=100_000)] = 64
    """Training rows that the gradients are measured on, at even distances through the data."""
    by: Literal["gradient", "trial", "random"] = "gradient"
    """How units are chosen. `gradient`: gradient norm over weight norm. `trial`: each unit learns alone for a moment on half of
    the rows, and what the other half gains counts (slower, and surer). `random`: as many, drawn with the
    run's seed; the placebo to compare with."""

    claim: ClassVar[str] = "only the chosen blocks moved"
    capabilities: ClassVar[Capabilities] = Capabilities(
        needs=frozenset({"training", "train_rows"}),
        gives=frozenset({"chosen_blocks"}),
        exclusive=frozenset({CHOICE}),
        conflicts={"adapter": ADAPTER_CLASH, "frozen_layers": FROZEN_CLASH, "new_weights": NEW_CLASH},
    )
    off: ClassVar[Mapping[str, Any]] = {"share": 1.0}

    _corpus: Corpus | None = PrivateAttr(None)
    _seed: int = PrivateAttr(0)
    _table: dict[str, float] = PrivateAttr(default_factory=dict)
    _chosen: list[str] = PrivateAttr(default_factory=list)

    def samples(self, corpus: Corpus) -> Corpus:
        """Remember the training rows."""
        if corpus.part == "train":
            self._corpus = corpus
        return corpus

    def edit(self, model: Any) -> Any:
        """Take the run's seed; the model stays as it is."""
        self._seed = seed_of_run()
        return model

    def units(self, model: Any) -> dict[str, frozenset[str]]:
        """What can be chosen, bottom first: label -> parameter names."""
        head, top = new_head(model), len(model.layers) + 1
        labels = {0: "embeddings", top: "head"} | {depth: f"block {depth}" for depth in range(1, top)}
        found: dict[int, set[str]] = {}
        matrices = set()
        for name, parameter in model.parameters_by_name().items():
            if name not in head:
                found.setdefault(model.depth(name), set()).add(name)
                matrices |= {model.depth(name)} if parameter.ndim >= 2 else set()
        return {labels[depth]: frozenset(found[depth]) for depth in sorted(found) if depth in matrices}

    def choose(self, model: Any) -> list[str]:
        """Labels of the units that train; measured once (a plan, which has no numbers, takes the lowest)."""
        if not self._chosen:
            units = self.units(model)
            if is_hollow(model):
                self._table = dict.fromkeys(units, 0.0)
            elif self.by == "random":
                generator = random.Random(derive_seed(self._seed, "surgical"))
                self._table = {unit: generator.random() for unit in units}
            else:
                self._table = self._measured(model, units)
            self._chosen = top_share(self._table, self.share)
        return self._chosen

    def _measured(self, model: Any, units: Mapping[str, frozenset[str]]) -> dict[str, float]:
        """The measure of each unit, over some training rows; gradients are gone afterwards and the weights as they were."""
        rows = training_rows(model, self._corpus, self.rows, self.use)
        named = model.parameters_by_name()
        asked = {name: parameter.requires_grad for name, parameter in named.items()}
        try:
            for parameter in named.values():
                parameter.requires_grad_(True)
            if self.by == "trial":
                return {unit: _trial(model, [named[name] for name in sorted(names)], rows) for unit, names in units.items()}
            mean_loss(model, rows)
            return {unit: _relative(named, sorted(names)) for unit, names in units.items()}
        finally:
            for name, parameter in named.items():
                parameter.grad = None
                parameter.requires_grad_(asked[name])

    def frozen(self, model: Any) -> frozenset[str]:
        """Everything that was not chosen."""
        if self.share == 1:
            return frozenset()
        units = self.units(model)
        chosen = frozenset[str]().union(*(units[unit] for unit in self.choose(model)))
        return frozenset(model.parameters_by_name()) - chosen - new_head(model)

    def begin(self, model: Any, parameters: Parameters) -> None:
        """Take the checksums, and tell the report what was chosen and why."""
        super().begin(model, parameters)
        if self._chosen:
            model.notes = (*model.notes, f"`surgical` trains {self.detail()}")

    def state(self) -> dict[str, Any]:
        """The checksums, the choice and the table behind it."""
        return {**super().state(), "chosen": list(self._chosen), "table": dict(self._table)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the checksums. Raises RecipeError when the choice, made again from the same numbers, is another."""
        super().load_state(state)
        if list(state["chosen"]) != self._chosen:
            why = f"it was {', '.join(state['chosen'])} before the restart and is {', '.join(self._chosen)} now"
            fix = "go on where the run was started (another machine may round differently), or use another `output_dir`"
            raise RecipeError("`surgical` chooses other blocks than before", why=why, fix=fix)

    def detail(self) -> str:
        """The chosen units, and the table that explains the choice, highest first."""
        if not self._chosen:
            return ""
        order = sorted(self._table, key=lambda unit: -self._table[unit])
        rest = f" and {len(order) - SHOWN} more" if len(order) > SHOWN else ""
        listed = ", ".join(f"{unit} {self._table[unit]:.3g}" for unit in order[:SHOWN])
        return f"{', '.join(self._chosen)} ({MEASURES[self.by]}: {listed}{rest})"


def _relative(named: Parameters, names: list[str]) -> float:
    gradient = total_norm(named[name].grad for name in names if named[name].grad is not None)  # type: ignore[misc]
    return _finite(gradient / max(total_norm(named[name] for name in names), 1e-30))


def _finite(measured: float) -> float:
    if not math.isfinite(measured):
        raise RecipeError("`surgical` measured numbers that are not finite", why="the model or its data are damaged")
    return measured


def _trial(model: Any, unit: list[torch.nn.Parameter], rows: list[Encoded]) -> float:
    """Nats that the second half of ``rows`` gains at best while this unit alone learns the first; then it is put back."""
    learned, held = rows[::2], rows[1::2] or rows
    kept = [parameter.detach().clone() for parameter in unit]
    best = first = _finite(mean_loss(model, held, gradients=False))
    for _ in range(TRIAL_STEPS):
        model.pretrained.zero_grad(set_to_none=True)
        mean_loss(model, learned)
        step_down(unit, TRIAL_SIZE)
        best = min(best, mean_loss(model, held, gradients=False))
    with torch.no_grad():
        for parameter, value in zip(unit, kept, strict=True):
            parameter.copy_(value)
    return first - best
