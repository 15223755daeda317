"""The report of a chain of stages: what each one's model is worth, and what it cost to make."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from rich.console import Console

from uplift.core.recipe import GgufModel, HfModel, PackageModel, Recipe, StageModel, Stages
from uplift.core.report import Cost, Report
from uplift.core.study_report import StageResult, StagesReport
from uplift.study.exports import exports_table
from uplift.study.report_html import render_page
from uplift.study.report_sections import effects_section, tile, word_section
from uplift.study.report_terminal import render_tables
from uplift.study.word_table import WordTable
from uplift.study.wording import DASH, show_bytes, show_interval, show_metric_name, show_score, show_seconds

ENVIRONMENT = ("torch", "transformers", "peft", "llm-uplift", "device", "precision", "threads", "processes")


def stage_result(recipe: Recipe, report: Report, folder: str) -> StageResult:
    """What a finished run says of its stage. ``recipe`` as it was written, before stages had folders."""
    evaluation, items = report.evaluation, report.evaluation.items if report.evaluation else 0
    seconds = report.cost.evaluation_seconds
    return StageResult(
        name=recipe.name,
        summary=summary_of(recipe),
        evaluation=evaluation,
        cost=report.cost,
        latency=seconds / items if seconds and items else None,
        effects=report.effects,
        exports=report.exports,
        run=folder,
    )


def summary_of(recipe: Recipe) -> str:
    """``minilm-l6: distill, early_stopping``."""
    model = recipe.model
    if isinstance(model, StageModel):
        start = f"from {model.name}"
    elif isinstance(model, PackageModel):
        start = model.name
    elif isinstance(model, HfModel):
        start = PurePosixPath(model.id).name
    else:
        start = PurePosixPath(model.path).name if isinstance(model, GgufModel) else f"new {model.use} model"
    how = ", ".join(technique.use for technique in recipe.techniques) or "all weights"
    return f"{start}: {how}" if recipe.train.steps != 0 or recipe.techniques else f"{start}: as it is"


def stages_report(
    stages: Stages, results: Sequence[StageResult], last: Report, *, command: str, started: str, finished: str
) -> StagesReport:
    """All stages together; ``last`` is the last one's own report."""
    failed = [result.name for result in results if not all(effect.passed for effect in result.effects)]
    return StagesReport(
        name=stages.name,
        hash=stages.hash(),
        status="failed" if failed else "finished",
        reason=f"no measurable effect in: {', '.join(failed)}" if failed else "",
        evaluation=last.evaluation,
        cost=_sum([result.cost for result in results]),
        data=last.data,
        recipe=stages.model_dump(mode="json"),
        warnings=last.warnings,
        environment={name: value for name, value in last.environment.items() if name in ENVIRONMENT},
        command=command,
        started=started,
        finished=finished,
        stages=tuple(results),
    )


def _sum(costs: Sequence[Cost]) -> Cost:
    return Cost(
        seconds=sum(cost.seconds or 0.0 for cost in costs),
        tokens=sum(cost.tokens for cost in costs),
        peak_memory_bytes=max(cost.peak_memory_bytes for cost in costs),
        evaluation_seconds=sum(cost.evaluation_seconds or 0.0 for cost in costs),
        steps=sum(cost.steps or 0 for cost in costs),
        model_bytes=costs[-1].model_bytes,
    )


# -- shown -------------------------------------------------------------------------------------------------------------
HEAD = ("stage", "score", "95 % interval", "to keep", "per row", "training", "what it does")


def stages_table(report: StagesReport) -> WordTable:
    """One row per stage: score, size, latency, cost."""
    metrics = dict.fromkeys(show_metric_name(stage.evaluation.metric) for stage in report.stages if stage.evaluation)
    lead = f"Score: {', '.join(metrics)}. " if len(metrics) == 1 else ""
    lead += "Per row: evaluation on this machine."
    rows = tuple(_row(stage, named=len(metrics) > 1) for stage in report.stages)
    return WordTable("Stages", lead, HEAD, rows, words=("what it does",))


def _row(stage: StageResult, named: bool) -> tuple[str, ...]:
    """``named``: the metric's name stands in the cell, because stages have different ones."""
    found = stage.evaluation
    score = show_score(found.metric, found.value) if found else DASH
    score = f"{show_metric_name(found.metric)} {score}" if found and named else score
    ends = show_interval(found.metric, found.score) if found else ""
    latency = DASH if stage.latency is None else f"{1000 * stage.latency:,.1f} ms"
    size = DASH if stage.cost.model_bytes is None else show_bytes(stage.cost.model_bytes)
    return (stage.name, score, ends, size, latency, show_seconds(stage.cost.seconds), stage.summary)


def verdict_of(report: StagesReport) -> str:
    """What came out at the end, in one sentence."""
    count, evaluation = len(report.stages), report.evaluation
    if evaluation is None:
        return f"{count} stages, nothing measured at the end"
    metric = f"{show_metric_name(evaluation.metric)} {show_score(evaluation.metric, evaluation.value)}"
    size = report.stages[-1].cost.model_bytes
    return f"{count} stages: {metric}" + (f" in {show_bytes(size)}" if size else "")


def render_stages_terminal(report: StagesReport, console: Console) -> None:
    """Print the chain."""
    render_tables(report, verdict_of(report), (), _tables(report), console)


def render_stages_page(report: StagesReport) -> str:
    """The page of the chain as a complete HTML document."""
    tiles = [
        tile("stages", f"{len(report.stages)}", ""),
        tile("training time", show_seconds(report.cost.seconds), f"{report.cost.steps or 0:,} steps"),
    ]
    shown = [
        *(word_section(found) for found in _tables(report)),
        effects_section([(stage.name, effect) for stage in report.stages for effect in stage.effects]),
    ]
    return render_page(report, "stages", verdict_of(report), (), tiles, shown)


def _tables(report: StagesReport) -> list[WordTable]:
    exports = [(stage.name, each) for stage in report.stages for each in stage.exports]
    return [stages_table(report), *([exports_table(exports)] if exports else [])]
