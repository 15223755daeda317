"""Reports as terminal tables; the same objects that ``report.json`` and ``report.html`` show."""

from __future__ import annotations

from rich.table import Table

from uplift.cli.printing import number, output, size
from uplift.core.report import Arm, ComparisonReport, Cost, EffectReport, Evaluation, Interval, Report


def show_report(report: Report) -> None:
    """What one run is worth: score beside the base, cost beside the plan, proofs, rows."""
    console = output()
    console.print(f"\n[bold]{report.name}[/bold]  {report.hash}  {report.status}{': ' if report.reason else ''}{report.reason}")
    if report.evaluation is not None:
        show_evaluation(report.evaluation)
    console.print(_cost(report.cost))
    if report.effects:
        console.print(_effects(report.effects))
    if report.data is not None:
        data = report.data
        console.print(f"rows: {data.rows_in:,} in = {data.rows_kept:,} kept + {data.rows_quarantined:,} quarantined")
    _warn(report.warnings)


def show_evaluation(evaluation: Evaluation) -> None:
    """The metrics with their 95 % intervals, beside those of the base model where it was measured."""
    table = Table("metric", "value", "95 % interval", box=None, header_style="bold")
    with_base = bool(evaluation.base_metrics)
    if with_base:
        table.add_column("base")
    metrics = dict(evaluation.metrics) or {evaluation.metric: evaluation.score}
    for name, interval in metrics.items():
        base = evaluation.base_metrics.get(name)
        row = [name, number(interval.value), _range(interval)]
        table.add_row(*row, *([number(base.value if base else None)] if with_base else []))
    console = output()
    console.print(table)
    console.print(f"{evaluation.items:,} test rows")
    if evaluation.difference is not None:
        gain = evaluation.difference
        console.print(f"{evaluation.metric}, this model minus the base: {number(gain.value)} {_range(gain)}", markup=False)


def show_comparison(report: ComparisonReport) -> None:
    """The ranked arms, the tests between them, the recommendation and its reasons."""
    console = output()
    table = Table(
        "", "arm", report.metric, "95 % interval", "seconds", "tokens", "memory", "size", box=None, header_style="bold"
    )
    for arm in report.arms:
        table.add_row(*_arm(arm))
    console.print(f"\n[bold]{report.name}[/bold]  {report.items:,} test rows, seeds {', '.join(map(str, report.seeds))}")
    console.print(table)
    if report.placebo is not None and report.placebo.text:
        console.print(f"placebo: {report.placebo.text}", markup=False)
    console.print(f"\n{report.recommendation.text}", markup=False)
    for reason in report.recommendation.reasons:
        console.print(f"  - {reason}", markup=False)
    unproven = [effect for effect in report.effects if not effect.passed]
    if unproven:
        console.print(_effects(tuple(unproven)))
    _warn(report.warnings)


def _arm(arm: Arm) -> list[str]:
    cost = arm.cost
    if arm.status == "failed" or arm.score is None:
        return ["", arm.name, "failed", arm.reason, "", "", "", ""]
    cells = ["" if arm.rank is None else str(arm.rank), arm.name, number(arm.score.value), _range(arm.score)]
    if cost is None:
        return [*cells, "", "", "", ""]
    return [*cells, number(cost.seconds), f"{cost.tokens:,}", size(cost.peak_memory_bytes), size(cost.model_bytes)]


def _range(interval: Interval) -> str:
    return "" if interval.low is None or interval.high is None else f"{number(interval.low)} to {number(interval.high)}"


def _cost(cost: Cost) -> Table:
    predicted = cost.predicted
    table = Table("cost", "measured", "predicted", box=None, header_style="bold")
    table.add_row("training time", number(cost.seconds, "s"), number(predicted.seconds if predicted else None, "s"))
    table.add_row("tokens", f"{cost.tokens:,}", number(predicted.tokens if predicted else None))
    table.add_row("peak memory", size(cost.peak_memory_bytes), size(predicted.peak_memory_bytes if predicted else None))
    return table


def _effects(effects: tuple[EffectReport, ...]) -> Table:
    table = Table("technique", "proof", "number", "", box=None, header_style="bold")
    for effect in effects:
        verdict = "[green]proven[/green]" if effect.passed else "[red]NOT PROVEN[/red]"
        table.add_row(effect.technique, effect.claim, number(effect.value), verdict)
    return table


def _warn(warnings: tuple[str, ...]) -> None:
    for warning in warnings:
        output().print(f"warning: {warning}", markup=False)
