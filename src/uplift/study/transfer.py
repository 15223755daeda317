"""What transfer is worth: one recipe becomes many (what is kept of the pretrained weights x number of rows x seed).

Pure functions: which recipes to run, and what follows from their outcomes. ``verbs.transfer`` runs them.
Shapes: P numbers of rows (points of a curve), R bootstrap replicates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from uplift.core.errors import DataError, UsageError
from uplift.core.recipe import Budget, Recipe, Seed
from uplift.core.registry import technique_class
from uplift.core.report import Report
from uplift.core.study_report import Bound
from uplift.core.technique import Technique
from uplift.core.wording import nearest
from uplift.evaluate.outcomes import Outcomes, higher_is_better, replicates, score
from uplift.evaluate.statistics import Floats, Interval, percentile_interval
from uplift.study.plan import Tokens, step_size

TRANSFER, SCRATCH, SHUFFLED = "transfer", "scratch", "shuffled"
RESAMPLES = 2000

Rows = Annotated[int, Field(ge=1, le=10**9)]


@dataclass(frozen=True)
class Kept:
    """What an arm keeps: in words, as options of ``reinitialize`` (None: all), and whether its body starts from nothing."""

    summary: str
    options: Mapping[str, Any] | None
    new_body: bool = False


ARMS: Mapping[str, Kept] = {
    TRANSFER: Kept("all pretrained weights", None),
    SCRATCH: Kept("none: all weights drawn anew", {"keep": "none"}, new_body=True),
    "embeddings": Kept("the embeddings; the body is drawn anew", {"keep": "embeddings"}, new_body=True),
    "body": Kept("the body; the embeddings are drawn anew", {"keep": "body"}),
    SHUFFLED: Kept("placebo: every value, in a random place of its tensor", {"keep": "none", "shuffle": True}, new_body=True),
}
BOUNDS: tuple[Bound, Bound, Bound] = ("at most", "", "at least")


class Design(BaseModel):
    """Which curves to measure, and how long each arm may train."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rows: Annotated[tuple[Rows, ...], Field(min_length=1, max_length=20)] = (8, 32, 128, 512)
    """Numbers of training rows."""
    seeds: Annotated[int, Field(ge=1, le=100)] = 3
    """Repetitions: other rows, other order, other new weights."""
    arms: Annotated[tuple[str, ...], Field(min_length=1)] = tuple(ARMS)
    blocks: bool = False
    """Also draw each block alone anew, at one number of rows."""
    block_rows: Rows | None = None
    """The number of rows for that; default: the middle one."""
    min_steps: Annotated[int, Field(ge=1, le=10**7)] = 100
    """Fewest optimizer steps, however few the rows."""
    scratch_times: Annotated[float, Field(ge=1, le=1000)] = 1.0
    """How many times the steps an arm gets whose body starts from nothing."""
    scratch_lr: Annotated[float, Field(gt=0, le=10)] | None = None
    """Learning rate of those arms; default: the recipe's."""

    @property
    def points(self) -> tuple[int, ...]:
        """The numbers of rows, once each, in order."""
        return tuple(sorted(set(self.rows)))

    @property
    def blocks_at(self) -> int:
        """Rows at which single blocks are drawn anew."""
        return self.block_rows or self.points[len(self.points) // 2]


@dataclass(frozen=True)
class Job:
    """One run of the study: ``arm`` is a name of ``ARMS`` or ``block-<k>``."""

    arm: str
    rows: int
    seed: int
    recipe: Recipe


@dataclass
class Cell:
    """One arm at one number of rows: what its seeds came to."""

    outcomes: dict[int, Outcomes] = field(default_factory=dict)
    reports: dict[int, Report] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    steps: int = 0
    lr: float | None = None

    def on(self, seeds: Sequence[int]) -> list[Outcomes]:
        """Outcomes of these seeds, in order."""
        return [self.outcomes[seed] for seed in seeds]

    @property
    def losses(self) -> list[tuple[float, float]]:
        """Training loss at the beginning and at the end, of each seed that has finite ones."""
        curves = [curve for report in self.reports.values() for curve in report.curves if curve.name == "loss"]
        finite = [[value for value in curve.values if value is not None] for curve in curves]
        return [(values[0], values[-1]) for values in finite if values]


# -- which recipes -----------------------------------------------------------------------------------------------------
def check_design(design: Design, base: Recipe, train_rows: int, labels: int) -> None:
    """Raise UsageError or DataError when the study cannot be made of this recipe and its ``train_rows``."""
    unknown = [arm for arm in design.arms if arm not in ARMS]
    if unknown:
        raise UsageError(f"there is no arm `{unknown[0]}`", where="--arms", fix=nearest(unknown[0], ARMS))
    if base.train.steps == 0:
        raise UsageError("the recipe trains nothing", where="train.steps", fix="remove `steps: 0`")
    taken = next((one.use for one in base.techniques if one.use in ("subset", "reinitialize")), None)
    if taken:
        raise UsageError(f"the recipe already uses `{taken}`", why="the study sets it itself", fix="remove it from the recipe")
    if max(*design.points, design.blocks_at) > train_rows:
        what = f"{max(*design.points, design.blocks_at):,} training rows are asked for, and the data has {train_rows:,}"
        raise DataError(what, where="--rows", fix=f"ask for at most {train_rows:,}, or lower `data.split`")
    if design.points[0] < labels:
        what = f"{design.points[0]} rows cannot show {labels} labels"
        raise DataError(what, where="--rows", fix=f"begin with at least {labels} rows")


def steps_for(base: Recipe, tokens: Tokens, rows: int, design: Design) -> int:
    """Optimizer steps with so many rows: the recipe's own ``steps``, or its epochs but at least ``min_steps``."""
    if base.train.steps is not None:
        return base.train.steps
    fewer = replace(tokens, rows=rows)
    each = math.ceil(fewer.per_epoch / step_size(base, fewer) - 1e-9)
    return max(design.min_steps, math.ceil(base.train.epochs * each))


def kept_of(arm: str) -> Kept:
    """What an arm keeps, single blocks included."""
    if arm in ARMS:
        return ARMS[arm]
    block = int(arm.removeprefix("block-"))
    return Kept(f"all but block {block}", {"keep": "all", "blocks": [block]})


def jobs_of(design: Design, base: Recipe, tokens: Tokens, layers: int, output_dir: str) -> list[Job]:
    """Every run, the cheap ones first; ``tokens`` describes all training rows, ``layers`` is the number of blocks."""
    seeds = [base.seed + offset for offset in range(design.seeds)]
    cells = [(arm, rows) for rows in design.points for arm in dict.fromkeys(design.arms)]
    if design.blocks:
        if (TRANSFER, design.blocks_at) not in cells:
            cells.append((TRANSFER, design.blocks_at))
        cells += [(f"block-{block}", design.blocks_at) for block in range(layers)]
    cells.sort(key=lambda cell: cell[1])
    return [
        Job(arm, rows, seed, recipe_for(design, base, tokens, arm, rows, seed, output_dir))
        for arm, rows in cells
        for seed in seeds
    ]


def recipe_for(design: Design, base: Recipe, tokens: Tokens, arm: str, rows: int, seed: Seed, output_dir: str) -> Recipe:
    """The base recipe on ``rows`` rows with what the arm keeps, for a fixed number of steps and no other budget."""
    kept, techniques = kept_of(arm), list(base.techniques)
    if rows < tokens.rows:
        techniques.insert(0, _technique("subset", rows=rows, seed=seed))
    if kept.options is not None:
        techniques.append(_technique("reinitialize", **kept.options))
    steps = steps_for(base, tokens, rows, design)
    train: dict[str, Any] = {"steps": math.ceil(steps * design.scratch_times) if kept.new_body else steps, "budget": Budget()}
    if kept.new_body and design.scratch_lr is not None:
        train["lr"] = design.scratch_lr
    return base.model_copy(
        update={
            "name": f"{arm}-{rows}",
            "techniques": techniques,
            "train": base.train.model_copy(update=train),
            "evaluate": base.evaluate.model_copy(update={"base": False, "robustness": None}),
            "seed": seed,
            "output_dir": output_dir,
        }
    )


def _technique(use: str, **options: Any) -> Technique:
    return technique_class(use).model_validate({"use": use, **options})


# -- arithmetic of curves ----------------------------------------------------------------------------------------------
def area(rows: Sequence[int], scores: Floats) -> Floats:
    """Mean of ``scores`` (..., P) over the logarithm of ``rows``: the trapezoids under the curve over its width.

    One point: its score.
    """
    if len(rows) == 1:
        return scores[..., 0]
    at = np.log(np.asarray(rows, dtype=np.float64))
    return np.asarray(np.trapezoid(scores, at, axis=-1) / (at[-1] - at[0]))


def rows_needed(rows: Sequence[int], scores: Floats, targets: Floats, higher: bool) -> tuple[Floats, NDArray[np.int64]]:
    """Rows at which curves (R, P) first reach ``targets`` (R,), linear in the logarithm of the rows between two points.

    Second result (R,): -1 where the first point is there already (at most so many), 1 where no point gets there (more than
    the last), else 0.
    """
    sign = 1.0 if higher else -1.0
    values, wanted = sign * scores, sign * targets
    there = values >= wanted[:, None]
    state = np.where(there[:, 0], -1, np.where(there.any(1), 0, 1))
    last = np.clip(there.argmax(1), 1, len(rows) - 1) if len(rows) > 1 else np.zeros(len(values), dtype=np.int64)
    line, first = np.arange(len(values)), np.maximum(last - 1, 0)
    rise = values[line, last] - values[line, first]
    share = np.divide(wanted - values[line, first], rise, out=np.zeros_like(wanted), where=(state == 0) & (rise > 0))
    at = np.log(np.asarray(rows, dtype=np.float64))
    between = np.exp(at[first] + share * (at[last] - at[first]))
    return np.where(state < 0, float(rows[0]), np.where(state > 0, float(rows[-1]), between)), state


@dataclass(frozen=True)
class Saved:
    """Labels saved at ``rows``: rows needed from scratch, their ratio with its interval, and which way it is only a bound."""

    rows: int
    needed: float
    ratio: Interval
    bound: Bound


def labels_saved(rows: Sequence[int], transfer: Curve, scratch: Curve, higher: bool) -> list[Saved]:
    """For each number of rows: how many times as many rows scratch needs for the same score."""
    found = []
    for place, count in enumerate(rows):
        needed, state = rows_needed(rows, scratch.means[None], transfer.means[place : place + 1], higher)
        drawn, _ = rows_needed(rows, scratch.replicates, transfer.replicates[:, place], higher)
        ratio = percentile_interval(float(needed[0]) / count, drawn / count)
        found.append(Saved(count, float(needed[0]), ratio, BOUNDS[int(state[0]) + 1]))
    return found


# -- curves of outcomes ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Curve:
    """An arm's mean scores (P,) and their bootstrap replicates (R, P) over seeds and items."""

    means: Floats
    replicates: Floats

    def area(self, rows: Sequence[int]) -> Interval:
        """The area with its interval."""
        return percentile_interval(float(area(rows, self.means)), area(rows, self.replicates))


def curve_of(cells: Sequence[Cell], metric: str, seeds: Sequence[Sequence[int]], resamples: int = RESAMPLES) -> Curve | None:
    """The curve through ``cells``, each on its own list of ``seeds``; None when a cell has none.

    Cells with equally many seeds are drawn alike, so that differences of replicates are paired.
    """
    if not all(seeds):
        return None
    runs = [cell.on(wanted) for cell, wanted in zip(cells, seeds, strict=True)]
    means = [float(np.mean([score(run, metric) for run in each])) for each in runs]
    return Curve(np.array(means), np.stack([replicates(each, metric, resamples=resamples) for each in runs], axis=1))


@dataclass(frozen=True)
class AreaGain:
    """Area of one arm minus that of another on common seeds, with its interval and two-sided bootstrap p."""

    difference: Interval
    p: float


def area_gain(
    rows: Sequence[int], first: Sequence[Cell], second: Sequence[Cell], metric: str, resamples: int = RESAMPLES
) -> AreaGain | None:
    """Paired over seeds and items; None when the two share no seed at some point."""
    common = [[seed for seed in one.outcomes if seed in other.outcomes] for one, other in zip(first, second, strict=True)]
    curves = [curve_of(cells, metric, common, resamples) for cells in (first, second)]
    if curves[0] is None or curves[1] is None:
        return None
    drawn = area(rows, curves[0].replicates) - area(rows, curves[1].replicates)
    value = float(area(rows, curves[0].means) - area(rows, curves[1].means))
    p = 2 * (min((drawn <= 0).sum(), (drawn >= 0).sum()) + 1) / (len(drawn) + 1)
    return AreaGain(percentile_interval(value, drawn), 1.0 if np.ptp(drawn) == 0 and value == 0 else min(1.0, float(p)))


def better(metric: str, difference: float) -> float:
    """A difference turned so that positive is better."""
    return difference if higher_is_better(metric) else -difference
