"""``uplift study transfer``: how many labelled rows pretraining saves, and which part of the model carries it.

::

    <name>-transfer-<hash>/          the hash is the recipe's: more rows, seeds or arms later reuse what has finished
      runs/<arm>-<rows>-<hash>/      one run folder per arm, number of rows and seed (its model is not kept)
      report.json  report.html
"""

from __future__ import annotations

import gc
import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from uplift.core.errors import DataError, Stopped, UsageError
from uplift.core.recipe import BlankModel, ClassifyTask, Recipe
from uplift.core.report import DataReport, Report
from uplift.core.run import Run
from uplift.core.storage import write_atomically
from uplift.core.study_report import TransferReport
from uplift.data.dataset import Parts, load_parts
from uplift.evaluate.outcomes import require_same_items
from uplift.learn.assemble import resolve_head
from uplift.learn.quality import quality_step
from uplift.model.opening import model_kind
from uplift.study.plan import Tokens, training_tokens
from uplift.study.structure import hollow_model
from uplift.study.transfer import RESAMPLES, Cell, Design, Job, check_design, jobs_of
from uplift.study.transfer_page import render_transfer_page
from uplift.study.transfer_report import transfer_report
from uplift.study.wording import show_metric_name, show_score
from uplift.verbs.command import command_line
from uplift.verbs.compare import read_outcomes, reason_of
from uplift.verbs.run import run
from uplift.verbs.studies import StudyProgress, environment_of, forget_model


def transfer(recipe: Recipe, base_dir: Path, design: Design, *, console: Console | None = None) -> TransferReport:
    """Carry out the study; runs that finished earlier are not repeated, one that was interrupted continues.

    A run that fails is listed with its reason and stops no other. Raises UsageError or DataError when the design does not
    fit the data, Stopped on a signal (the same command continues).
    """
    parts, tokens, layers = _examine(recipe, base_dir)
    check_design(design, recipe, len(parts.train), len(parts.labels))
    with Run.create(
        recipe.model_dump(mode="json"), Path(recipe.output_dir), f"{recipe.name}-transfer", recipe.hash()
    ) as folder:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        jobs = jobs_of(design, recipe, tokens, layers, str(folder.path / "runs"))
        progress = StudyProgress(console, len(jobs), sum(job.recipe.train.steps or 0 for job in jobs))
        cells: dict[tuple[str, int], Cell] = {}
        for job in jobs:
            _carry_out(job, cells.setdefault((job.arm, job.rows), Cell()), base_dir, parts, progress)
        outcomes = [one for cell in cells.values() for one in cell.outcomes.values()]
        for one in outcomes[1:]:
            require_same_items(outcomes[0], one)
        report = transfer_report(
            design,
            recipe,
            cells,
            outcomes[0].metric if outcomes else "accuracy",
            len(outcomes[0]) if outcomes else 0,
            max(RESAMPLES, recipe.evaluate.bootstrap),
            hash=_hash(design, recipe),
            command=command_line("study transfer"),
            started=started,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            environment=environment_of(_first(cells)),
            data=_data(cells),
        )
        folder.write_report(report)
        write_atomically(folder.report_page, render_transfer_page(report))
        progress.say(f"\nreport: {folder.report_page}")
    return report


def _examine(recipe: Recipe, base_dir: Path) -> tuple[Parts, Tokens, int]:
    """The rows, the lengths of the training rows, and the number of the model's blocks; no weight is read."""
    if isinstance(recipe.model, BlankModel):
        fix = "name a pretrained model; the study draws its weights anew by itself"
        raise UsageError("a new model has no pretraining to measure", where="model.use", fix=fix)
    head = resolve_head(recipe.task, model_kind(recipe.model, base_dir))
    parts = load_parts(recipe.data, recipe.task, base_dir, head, quality=quality_step)
    if not parts.test:
        fix = "add `data.split.test: 0.2` or `data.test`"
        raise DataError("the study has nothing to measure on", where="data.split", why="there is no test part", fix=fix)
    labels = parts.labels if isinstance(recipe.task, ClassifyTask) else ()
    model = hollow_model(recipe, base_dir, labels)
    return parts, training_tokens(recipe, parts, model, len(parts.test)), len(model.layers)


def _carry_out(job: Job, cell: Cell, base_dir: Path, parts: Parts, progress: StudyProgress) -> None:
    """One run; what goes wrong is kept as the reason. Stopping signals pass through."""
    progress.announce(f"{job.arm} with {job.rows:,} rows, seed {job.seed}")
    cell.steps = job.recipe.train.steps or 0
    cell.lr = job.recipe.train.lr if isinstance(job.recipe.train.lr, float) else None
    try:
        report = run(job.recipe, base_dir, console=progress.console, parts=parts, brief=True)
        folder = Path(job.recipe.output_dir) / f"{job.recipe.name}-{job.recipe.hash()}"
        outcomes = read_outcomes(folder)
        cell.reports[job.seed], cell.outcomes[job.seed] = report, outcomes
        forget_model(folder)
        value = report.evaluation.value if report.evaluation else None
        progress.say(f"  {show_metric_name(outcomes.metric)} {show_score(outcomes.metric, value)}")
    except Stopped:
        raise
    except Exception as error:  # one run's failure, of any kind, must not cost the others their results
        cell.failures[job.seed] = reason_of(error)
        progress.say(f"  failed: {cell.failures[job.seed]}")
    finally:
        gc.collect()
        progress.finish(job.recipe.train.steps or 0)


def _hash(design: Design, recipe: Recipe) -> str:
    content = {"design": design.model_dump(mode="json"), "recipe": recipe.hash()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _first(cells: dict[tuple[str, int], Cell]) -> Report | None:
    return next((one for cell in cells.values() for one in cell.reports.values()), None)


def _data(cells: dict[tuple[str, int], Cell]) -> DataReport | None:
    first = _first(cells)
    return first.data if first else None
