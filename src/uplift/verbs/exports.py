"""The files that a recipe's `export:` asks for: made from the model of a finished run, and told in its report."""

from __future__ import annotations

import shutil
from pathlib import Path

from uplift.core.errors import RecipeError
from uplift.core.recipe import Recipe
from uplift.core.report import Difference, ExportReport, Interval, Report
from uplift.core.run import Run
from uplift.core.storage import write_atomically
from uplift.serve.export.formats import check_packages
from uplift.study.report_html import render_html
from uplift.verbs.display import Display
from uplift.verbs.export import Exported, RefusedExport, export


def check_exports(recipe: Recipe) -> None:
    """Refuse before training what could only fail after it. Raises RecipeError, and ResourceError for a missing package."""
    for asked in recipe.export:
        check_packages(asked.to, asked.type, gate=True)
    splits = recipe.data.split
    if recipe.export and recipe.data.test is None and not splits.test:
        fix = "set `data.split.test` or `data.test`"
        raise RecipeError("exported files are compared on test rows, and there are none", where="export", fix=fix)


def add_exports(recipe: Recipe, base_dir: Path, folder: Run, report: Report, display: Display) -> Report:
    """The report with the files that are asked for; those made before are kept.

    Raises RefusedExport after the report is written when a file differs too much from the model, and RecipeError when the run
    made no model.
    """
    made = {each.name: each for each in report.exports if each.file and (folder.path / each.file).is_file()}
    missing = [asked for asked in recipe.export if asked.name not in made]
    if not missing:
        return report
    if not folder.model_dir.is_dir():
        fix = "export the model itself with `uplift export`"
        raise RecipeError("this run changes no weights, so there is no model to export", where="export", fix=fix)
    refused: RefusedExport | None = None
    for asked in missing:
        target = folder.path / "exports" / asked.name
        shutil.rmtree(target, ignore_errors=True)  # of a run that was stopped between the file and the report
        try:
            found = export(
                str(folder.model_dir),
                target,
                asked.to,
                number_type=asked.type,
                recipe=recipe,
                base_dir=base_dir,
                rows=asked.rows,
                max_length=recipe.train.max_length,
                past=asked.past_tolerance,
                console=display.console,
            )
        except RefusedExport as error:
            found, refused = error.exported, error
        made[asked.name] = _export_report(asked.name, found, folder)
    report = report.model_copy(update={"exports": tuple(made.values())})
    write_atomically(folder.report_page, render_html(report))
    folder.write_report(report)
    if refused is not None:
        raise refused
    return report


def _export_report(name: str, exported: Exported, folder: Run) -> ExportReport:
    parity = exported.parity
    assert parity is not None
    metric, before, after = parity.metric, parity.original_cost, parity.cost
    return ExportReport(
        name=name,
        file=str(exported.file.relative_to(folder.path)) if exported.file.exists() else "",
        runtime=parity.runtime,
        size=parity.size,
        agreement=parity.agreement.share,
        divergence=parity.agreement.divergence,
        metric=metric.name if metric else "",
        score=Interval(**metric.exported) if metric else None,
        original=Interval(**metric.original) if metric else None,
        difference=Difference(**metric.difference) if metric else None,
        items=metric.items if metric else 0,
        tokens_per_second=after.tokens_per_second if after else None,
        original_tokens_per_second=before.tokens_per_second if before else None,
        memory_bytes=after.memory if after else None,
        original_memory_bytes=before.memory if before else None,
        load_seconds=after.load if after else None,
        problems=parity.problems,
    )
