"""Reports in the terminal, on standard output."""

from __future__ import annotations

from rich.table import Table

from uplift.cli.printing import number, output
from uplift.core.report import ComparisonReport, Evaluation, Interval, Report
from uplift.study.report_terminal import render_robustness, render_terminal


def show_report(report: Report | ComparisonReport) -> None:
    """What a run or a comparison is worth."""
    render_terminal(report, output())


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
    if evaluation.robustness is not None:
        render_robustness(evaluation.robustness, console)


def _range(interval: Interval) -> str:
    return "" if interval.low is None or interval.high is None else f"{number(interval.low)} to {number(interval.high)}"
