"""``uplift run`` on a file with ``stages:``: one run after the other, the model flows from each to the next.

::

    <name>-<hash>/
      stages/<stage>-<hash>/   one run folder per stage
      report.json  report.html
"""

from __future__ import annotations

import gc
import os
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from uplift.core.recipe import Stages, with_stages
from uplift.core.run import Run
from uplift.core.storage import write_atomically
from uplift.core.study_report import StageResult, StagesReport
from uplift.study.stages import render_stages_page, stage_result, stages_report
from uplift.verbs.command import command_line
from uplift.verbs.export import RefusedExport
from uplift.verbs.run import finished_run, run


def run_stages(stages: Stages, base_dir: Path, *, console: Console | None = None, resume: bool = True) -> StagesReport:
    """Carry out the stages in order; finished ones are not repeated, an interrupted one continues.

    ``base_dir``: where relative data and model paths start. Raises what ``run`` raises; stages before the failing one are kept.
    A file of `export:` that is refused stops nothing: it is told in the report, and raised when that is written.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    with Run.create(stages.model_dump(mode="json"), Path(stages.output_dir), stages.name, stages.hash()) as folder:
        home = folder.path / "stages"
        models: dict[str, str] = {}
        results: list[StageResult] = []
        refused: RefusedExport | None = None
        for number, written in enumerate(stages.stages, start=1):
            if console:
                console.print(f"\n[{number} of {len(stages.stages)}] {written.name}", highlight=False, markup=False)
            recipe = with_stages(written, models).model_copy(update={"output_dir": str(home)})
            made = home / f"{recipe.name}-{recipe.hash()}"
            try:
                report = run(recipe, base_dir, console=console, resume=resume, brief=True)
            except RefusedExport as error:
                report, refused = finished_run(made), error
            # Relative, so that a project folder can be moved without its stages becoming others.
            models[written.name] = os.path.relpath(made / "model", base_dir)
            results.append(stage_result(written, report, str(made.relative_to(folder.path))))
            gc.collect()
        whole = stages_report(
            stages,
            results,
            report,
            command=command_line("run"),
            started=started,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        folder.write_report(whole)
        write_atomically(folder.report_page, render_stages_page(whole))
        if console:
            console.print(f"\nreport: {folder.report_page}", highlight=False, markup=False)
    if refused is not None:
        raise refused
    return whole
