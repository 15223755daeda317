"""The conclusion of a transfer study in words and as its report: a pure function of what the runs came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from uplift.core import report
from uplift.core.recipe import Recipe
from uplift.core.study_report import BlockLoss, CurvePoint, LabelsSaved, TransferArm, TransferPlacebo, TransferReport
from uplift.evaluate.outcomes import contrast, higher_is_better, replicates, score, score_interval
from uplift.evaluate.statistics import Interval, holm, percentile_interval
from uplift.evaluate.tasks import to_interval
from uplift.study.transfer import (
    RESAMPLES,
    SCRATCH,
    SHUFFLED,
    TRANSFER,
    AreaGain,
    Cell,
    Curve,
    Design,
    area_gain,
    better,
    curve_of,
    kept_of,
    labels_saved,
)
from uplift.study.wording import show_metric_name, show_score

Cells = Mapping[tuple[str, int], Cell]
FITTED = 0.5
"""An arm whose training loss stays above this share of its first value has not fitted its own rows."""
METHOD = "paired bootstrap over seeds and items"


@dataclass(frozen=True)
class Findings:
    """The numbers of a study. ``gains``: area of each arm minus that from scratch; ``curves``: arms with all points."""

    metric: str
    points: tuple[int, ...]
    curves: Mapping[str, Curve]
    gains: Mapping[str, AreaGain]
    saved: tuple[LabelsSaved, ...]
    placebo: TransferPlacebo | None
    blocks: tuple[BlockLoss, ...]

    @property
    def sign(self) -> float:
        """1 where more is better, else -1."""
        return better(self.metric, 1.0)


def find(design: Design, cells: Cells, metric: str, resamples: int = RESAMPLES) -> Findings:
    """Curves, gains, labels saved, placebo and blocks of what has finished."""
    points, lines = design.points, _lines(design, cells)
    curves = {}
    for arm, line in lines.items():
        curve = curve_of(line, metric, [list(cell.outcomes) for cell in line], resamples)
        if curve is not None:
            curves[arm] = curve
    gains = {}
    for arm in [each for each in lines if SCRATCH in lines and each != SCRATCH]:
        gain = area_gain(points, lines[arm], lines[SCRATCH], metric, resamples)
        if gain is not None:
            gains[arm] = gain
    saved: list[LabelsSaved] = []
    if TRANSFER in curves and SCRATCH in curves:
        found = labels_saved(points, curves[TRANSFER], curves[SCRATCH], higher_is_better(metric))
        saved = [
            LabelsSaved(
                rows=one.rows,
                needed=one.needed,
                ratio=one.ratio.value,
                bound=one.bound,
                low=min(one.ratio.low, one.ratio.value),
                high=max(one.ratio.high, one.ratio.value),
            )
            for one in found
        ]
    placebo = _placebo(gains.get(SHUFFLED), metric)
    return Findings(metric, points, curves, gains, tuple(saved), placebo, tuple(_blocks(design, cells, metric, resamples)))


def _lines(design: Design, cells: Cells) -> dict[str, list[Cell]]:
    """The cells of each arm in order of rows."""
    return {arm: [cells.get((arm, rows), Cell()) for rows in design.points] for arm in dict.fromkeys(design.arms)}


def _placebo(gain: AreaGain | None, metric: str) -> TransferPlacebo | None:
    if gain is None:
        return None
    zero = not gain.difference.excludes(0.0)
    shown = show_score(metric, gain.difference.value, signed=True)
    text = f"The placebo, shuffled weights, gains {shown} over new weights"
    text += (
        ": nothing that this data can show, as it must be."
        if zero
        else (
            ": part of what looks like transfer is the scale of the weights, not what they know."
            if better(metric, gain.difference.value) > 0
            else ": the scale of the pretrained weights alone hinders training."
        )
    )
    return TransferPlacebo(gain=_difference(gain), about_zero=zero, text=text)


def _difference(gain: AreaGain) -> report.Difference:
    found = gain.difference
    return report.Difference(value=found.value, low=found.low, high=found.high, p=gain.p, method=METHOD)


def _blocks(design: Design, cells: Cells, metric: str, resamples: int) -> list[BlockLoss]:
    """Each block's loss against all pretrained weights at the same rows and seeds; p-values corrected together."""
    rows = design.blocks_at
    whole = cells.get((TRANSFER, rows), Cell())
    names = sorted((arm for arm, at in cells if arm.startswith("block-") and at == rows), key=lambda arm: int(arm[6:]))
    found = []
    for name in names:
        cell = cells[name, rows]
        common = [seed for seed in whole.outcomes if seed in cell.outcomes]
        if common:
            found.append((int(name[6:]), cell, contrast(whole.on(common), cell.on(common), metric, resamples=resamples)))
    adjusted = holm([gap.p for _, _, gap in found])
    sign = better(metric, 1.0)
    losses = []
    for (block, cell, gap), p in zip(found, adjusted, strict=True):
        ends = sorted((sign * gap.difference.low, sign * gap.difference.high))
        loss = report.Difference(value=sign * gap.difference.value, low=ends[0], high=ends[1], p=gap.p, method=gap.test)
        losses.append(
            BlockLoss(block=block, rows=rows, score=to_interval(_score(cell, metric, resamples)), loss=loss, p_holm=p)
        )
    return losses


def _score(cell: Cell, metric: str, resamples: int) -> Interval:
    """Over seeds and items; over items alone when there is one seed."""
    runs = list(cell.outcomes.values())
    if len(runs) == 1:
        return score_interval(runs[0], metric, resamples=resamples)
    value = float(np.mean([score(run, metric) for run in runs]))
    return percentile_interval(value, replicates(runs, metric, resamples=resamples))


# -- in words ----------------------------------------------------------------------------------------------------------
def verdict(found: Findings) -> str:
    """The one sentence to take away."""
    gain = found.gains.get(TRANSFER)
    if gain is None:
        return "The curves stand below; without both `transfer` and `scratch` nothing can be said of labels saved."
    if not gain.difference.excludes(0.0):
        return "Pretrained and new weights show no difference that this data can show."
    if better(found.metric, gain.difference.value) < 0:
        return "Training from scratch is better than from the pretrained weights."
    best = max(found.saved, key=lambda one: one.ratio or 0.0)
    reached = show_score(found.metric, float(found.curves[TRANSFER].means[found.points.index(best.rows)]))
    times = f"{best.ratio:.1f} times as many"
    needs = {
        "": f"for which training from scratch needs about {best.needed or 0:,.0f}: {times}",
        "at least": f"which training from scratch does not reach with {best.needed or 0:,.0f}: more than {times}",
        "at most": f"which training from scratch reaches with {best.needed or 0:,.0f} as well",
    }[best.bound]
    return f"Pretraining saves labels: {best.rows:,} rows give {show_metric_name(found.metric)} {reached}, {needs}."


def reasons(found: Findings) -> list[str]:
    """What stands behind the verdict, most important first."""
    gain, metric = found.gains.get(TRANSFER), found.metric
    lines = []
    if gain is not None:
        ends = " to ".join(
            show_score(metric, end, signed=True, unit=False) for end in (gain.difference.low, gain.difference.high)
        )
        shown = show_score(metric, gain.difference.value, signed=True)
        span = f"{found.points[0]:,} to {found.points[-1]:,} rows" if len(found.points) > 1 else f"{found.points[0]:,} rows"
        lines.append(f"Mean over {span}: {shown} against scratch (95 % interval {ends}).")
        lines += _gap(found) + _parts(found)
    if found.placebo is not None:
        lines.append(found.placebo.text)
    return lines + _most_important_block(found)


def _gap(found: Findings) -> list[str]:
    """How the difference changes with the rows."""
    if len(found.points) < 2 or TRANSFER not in found.curves or SCRATCH not in found.curves:
        return []
    gaps = found.curves[TRANSFER].means - found.curves[SCRATCH].means
    first, last = (show_score(found.metric, float(gap), signed=True) for gap in (gaps[0], gaps[-1]))
    return [f"The difference is {first} with {found.points[0]:,} rows and {last} with {found.points[-1]:,}."]


def _parts(found: Findings) -> list[str]:
    shares = {arm: share_of(found, arm) for arm in ("embeddings", "body")}
    told = [f"the {arm} alone {100 * share:.0f} %" for arm, share in shares.items() if share is not None]
    return [f"Of that gain, {' and '.join(told)} can be had with the rest drawn anew."] if told else []


def share_of(found: Findings, arm: str) -> float | None:
    """An arm's gain over scratch as a share of that of all pretrained weights; None unless that gain is real."""
    whole, part = found.gains.get(TRANSFER), found.gains.get(arm)
    if whole is None or part is None or not whole.difference.excludes(0.0) or better(found.metric, whole.difference.value) < 0:
        return None
    return part.difference.value / whole.difference.value


def _most_important_block(found: Findings) -> list[str]:
    if not found.blocks:
        return []
    worst = max(found.blocks, key=lambda one: one.loss.value or 0.0)
    if (worst.p_holm or 0.0) >= 0.05 or (worst.loss.value or 0.0) <= 0:
        return ["No single block is shown to matter: each can be drawn anew without a loss that this data can show."]
    lost = show_score(found.metric, worst.loss.value, signed=True).lstrip("+")
    return [f"Block {worst.block} matters most: drawn anew it costs {lost} with {worst.rows:,} rows."]


def warnings(design: Design, cells: Cells, base: Recipe) -> list[str]:
    """What the reader should be careful about."""
    found = []
    given = frozenset[str]().union(*(technique.declare().gives for technique in base.techniques))
    if given & {"adapter", "head_only"}:
        what = "an adapter" if "adapter" in given else "a head alone"
        found.append(f"The recipe trains {what}: an arm with new weights cannot learn what they lack. Train all weights.")
    for arm in design.arms:
        slow = [rows for rows in design.points if kept_of(arm).new_body and not _fitted(cells.get((arm, rows), Cell()))]
        if slow:
            listed = ", ".join(f"{rows:,}" for rows in slow)
            found.append(
                f"`{arm}` has not fitted its own training rows (at {listed} rows), so it is under-trained: "
                "raise `--scratch-times`, `--scratch-lr` or `--min-steps`."
            )
    for (arm, rows), cell in cells.items():
        found += [f"`{arm}` with {rows:,} rows (seed {seed}) failed: {why}" for seed, why in cell.failures.items()]
    if design.seeds == 1:
        found.append("One seed: the intervals cover the choice of test items, not the luck of training and of the rows drawn.")
    return found


def _fitted(cell: Cell) -> bool:
    return all(last <= FITTED * first for first, last in cell.losses)


def notes(design: Design, cells: Cells, base: Recipe) -> list[str]:
    """How the arms were treated."""
    steps = [f"{rows:,} rows {cells[TRANSFER, rows].steps:,}" for rows in design.points if (TRANSFER, rows) in cells]
    lines = [f"Every arm takes the same optimizer steps at one number of rows: {', '.join(steps)}."] if steps else []
    if design.scratch_times > 1:
        lines.append(f"Arms whose body starts from nothing take {design.scratch_times:g} times as many.")
    if design.scratch_lr is not None:
        lines.append(f"Arms whose body starts from nothing train at a learning rate of {design.scratch_lr:g}.")
    lines.append("No arm is given the compute of the pretraining itself.")
    if base.train.budget.model_dump(exclude_none=True):
        lines.append("The budget of the recipe is not used: it would end the arms at different steps.")
    return lines


# -- the report --------------------------------------------------------------------------------------------------------
def transfer_report(
    design: Design, base: Recipe, cells: Cells, metric: str, items: int, resamples: int = RESAMPLES, **common: object
) -> TransferReport:
    """The report; ``common`` goes through (hash, command, started, finished, environment, data)."""
    found = find(design, cells, metric, resamples)
    finished = bool(found.curves)
    every = [one for cell in cells.values() for one in cell.reports.values()]
    return TransferReport(
        name=base.name,
        status="finished" if finished else "failed",
        reason="" if finished else "no arm finished at every number of rows",
        cost=_cost(every),
        effects=_effects(cells),
        recipe=base.model_dump(mode="json"),
        warnings=tuple(warnings(design, cells, base)),
        notes=tuple(notes(design, cells, base)),
        metric=metric,
        higher_is_better=higher_is_better(metric),
        items=items,
        rows=found.points,
        seeds=tuple(base.seed + offset for offset in range(design.seeds)),
        verdict=verdict(found),
        reasons=tuple(reasons(found)),
        arms=tuple(_arm(arm, line, found, resamples) for arm, line in _lines(design, cells).items()),
        labels_saved=found.saved,
        placebo=found.placebo,
        blocks=found.blocks,
        **common,  # type: ignore[arg-type]
    )


def _arm(arm: str, line: Sequence[Cell], found: Findings, resamples: int) -> TransferArm:
    curve, gain = found.curves.get(arm), found.gains.get(arm)
    points = [_point(rows, cell, found.metric, resamples) for rows, cell in zip(found.points, line, strict=True)]
    return TransferArm(
        name=arm,
        summary=kept_of(arm).summary,
        points=tuple(points),
        area=to_interval(curve.area(found.points)) if curve else None,
        gain=_difference(gain) if gain else None,
        share=share_of(found, arm),
        failures=tuple(why for cell in line for why in cell.failures.values()),
    )


def _point(rows: int, cell: Cell, metric: str, resamples: int) -> CurvePoint:
    seconds = [one.cost.seconds or 0.0 for one in cell.reports.values()]
    losses = np.array(cell.losses).mean(0).tolist() if cell.losses else [None, None]
    return CurvePoint(
        rows=rows,
        score=to_interval(_score(cell, metric, resamples)) if cell.outcomes else None,
        seeds=tuple(report.SeedScore(seed=seed, value=score(one, metric)) for seed, one in cell.outcomes.items()),
        steps=cell.steps,
        lr=cell.lr,
        first_loss=losses[0],
        last_loss=losses[1],
        seconds=sum(seconds) / len(seconds) if seconds else None,
    )


def _cost(reports: Sequence[report.Report]) -> report.Cost:
    """Time and tokens of all runs together; memory of the largest."""
    return report.Cost(
        seconds=sum(one.cost.seconds or 0.0 for one in reports),
        tokens=sum(one.cost.tokens for one in reports),
        peak_memory_bytes=max((one.cost.peak_memory_bytes for one in reports), default=0),
        evaluation_seconds=sum(one.cost.evaluation_seconds or 0.0 for one in reports),
        steps=sum(one.cost.steps or 0 for one in reports),
    )


def _effects(cells: Cells) -> tuple[report.EffectReport, ...]:
    """The proofs of each arm's first run."""
    firsts: dict[str, report.Report] = {}
    for (arm, _), cell in cells.items():
        for one in cell.reports.values():
            firsts.setdefault(arm, one)
    return tuple(
        effect.model_copy(update={"detail": f"{arm}: {effect.detail}"}) for arm, one in firsts.items() for effect in one.effects
    )
