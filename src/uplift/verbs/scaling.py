"""``uplift study scaling``: small runs, the scaling law through them, and what it advises for a budget.

::

    <name>-scaling-<hash>/           the hash is the recipe's: more sizes, tokens or seeds later reuse what has finished
      ladder-<hash>.json             sizes and tokens that were chosen for a budget
      runs/n<size>-d<tokens>-<hash>/ one run folder per run (its model is not kept)
      report.json  report.html
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from uplift.core.errors import DataError, NumericsError, RecipeError, Stopped, UsageError
from uplift.core.model_section import BlankModel
from uplift.core.recipe import Recipe
from uplift.core.report import Report
from uplift.core.run import Run
from uplift.core.storage import write_atomically
from uplift.core.study_report import ScalingReport
from uplift.data.dataset import Parts, load_parts
from uplift.learn.assemble import resolve_head
from uplift.learn.quality import quality_step
from uplift.model.opening import model_kind
from uplift.study.plan import EFFICIENCY, STEP_SECONDS, Tokens, measured_machine, training_tokens
from uplift.study.scaling import (
    Design,
    Ladder,
    Outcome,
    Rung,
    check_design,
    check_text,
    chosen_rate,
    ladder_for,
    multiplying_parameters,
    next_rate,
    price_in_seconds,
    recipe_for,
    rungs_of,
    search_rung,
)
from uplift.study.scaling_law import Price
from uplift.study.scaling_page import render_scaling_page
from uplift.study.scaling_report import Scene, scaling_report
from uplift.study.structure import examine, hollow_model
from uplift.study.wording import show_count
from uplift.verbs.command import command_line
from uplift.verbs.compare import reason_of
from uplift.verbs.plan import run_probe
from uplift.verbs.run import run
from uplift.verbs.studies import StudyProgress, environment_of, forget_model

USUAL_RATES = 3
"""Runs of a search that finds the best rate at once."""


@dataclass
class Study:
    """A study under way: its recipe, text and folder, N by size, and what its runs came to."""

    design: Design
    base: Recipe
    base_dir: Path
    parts: Parts
    tokens: Tokens
    home: Path
    progress: StudyProgress
    parameters: dict[int, int] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    first: Report | None = None


def scaling(recipe: Recipe, base_dir: Path, design: Design, *, console: Console | None = None) -> ScalingReport:
    """Carry out the study; runs that finished earlier are not repeated, one that was interrupted continues.

    A run that fails is listed with its reason and stops no other. Raises UsageError or DataError when no ladder can be made of
    the recipe, NumericsError when no learning rate trains the smallest model, Stopped on a signal (the same command continues).
    """
    check_design(design, recipe)
    parts, tokens = _examine(recipe, base_dir)
    check_text(design, tokens.per_epoch)
    with Run.create(recipe.model_dump(mode="json"), Path(recipe.output_dir), f"{recipe.name}-scaling", recipe.hash()) as folder:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        study = Study(design, recipe, base_dir, parts, tokens, folder.path, StudyProgress(console, 0, 0.0))
        ladder = _ladder(study)
        asked = design.size or _own_size(recipe)
        for size in (*ladder.sizes, asked):  # a size that cannot be built is refused before anything is trained
            study.parameters[size] = _count(study, size)
        factor = _search(study, ladder)
        rungs = rungs_of(design, ladder, recipe, factor)
        _expect(study, rungs)
        for rung in rungs:
            _carry_out(study, rung)
        report = scaling_report(
            design,
            recipe,
            study.outcomes,
            Scene(tokens.per_epoch, asked, study.parameters[asked]),
            recipe.evaluate.bootstrap,
            hash=_hash(design, recipe),
            command=command_line("study scaling"),
            started=started,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            environment=environment_of(study.first),
            data=study.first.data if study.first else None,
        )
        folder.write_report(report)
        write_atomically(folder.report_page, render_scaling_page(report))
        study.progress.say(f"\nreport: {folder.report_page}")
    return report


def _examine(recipe: Recipe, base_dir: Path) -> tuple[Parts, Tokens]:
    """The rows, and the lengths of the training rows."""
    head = resolve_head(recipe.task, model_kind(recipe.model, base_dir))
    parts = load_parts(recipe.data, recipe.task, base_dir, head, quality=quality_step)
    if not parts.test:
        fix = "add `data.split.test: 0.1` or `data.test`"
        raise DataError("the study has nothing to measure on", where="data.split", why="there is no test part", fix=fix)
    model = hollow_model(recipe, base_dir, (), parts.train)
    return parts, training_tokens(recipe, parts, model, len(parts.test))


def _own_size(recipe: Recipe) -> int:
    assert isinstance(recipe.model, BlankModel) and recipe.model.parameters  # check_design has seen to it
    return recipe.model.parameters


def _sized(recipe: Recipe, size: int) -> Recipe:
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"parameters": size})})


def _count(study: Study, size: int) -> int:
    """N of the model that this size gives, counted on it."""
    sized = _sized(study.base, size)
    hollow = hollow_model(sized, study.base_dir, (), study.parts.train)
    return multiplying_parameters(examine(hollow, sized.techniques, True))


# -- the ladder --------------------------------------------------------------------------------------------------------
def _ladder(study: Study) -> Ladder:
    """The sizes and tokens asked for, or those that fit the budget: chosen once, since speeds measured later would differ."""
    design = study.design
    if design.sizes:
        return Ladder.of(design.sizes, design.tokens)
    terms = design.model_dump(mode="json", include={"budget", "seeds", "tune"})
    kept = study.home / f"ladder-{hashlib.sha256(json.dumps(terms, sort_keys=True).encode()).hexdigest()[:12]}.json"
    if kept.exists():
        content = json.loads(kept.read_text(encoding="utf-8"))
        return Ladder.of(content["sizes"], content["tokens"])
    rates = USUAL_RATES * design.tune
    if design.budget.flops is not None:
        ladder = ladder_for(design.budget.flops, Price(), study.tokens.per_epoch, design.seeds, rates)
    else:
        assert design.budget.seconds is not None  # Design has seen to it
        ladder = _ladder_in_time(study, design.budget.seconds, rates)
    _require_smallest(study, ladder)
    write_atomically(kept, json.dumps({"sizes": ladder.sizes, "tokens": ladder.tokens}))
    return ladder


def _require_smallest(study: Study, ladder: Ladder) -> None:
    """Raise UsageError when the budget's smallest size is none that the recipe's shape and vocabulary can have."""
    try:
        _count(study, ladder.sizes[0])
    except RecipeError as error:
        why = f"its smallest model would have {ladder.sizes[0]:,} parameters; {error.why}"
        fix = "raise `--budget`, take a smaller vocabulary, or give `--sizes` and `--tokens`"
        raise UsageError("the budget is too small for a ladder", where="--budget", why=why, fix=fix) from error


def _ladder_in_time(study: Study, seconds: float, rates: int) -> Ladder:
    """The ladder for so many seconds: guessed from the machine's peak, then measured on its smallest and largest model."""
    found = measured_machine(study.base)
    bookkeeping = STEP_SECONDS / study.base.train.batch_tokens
    guess = Price(6 / (found.gemm_flops * EFFICIENCY.get(found.device, EFFICIENCY["cpu"])), bookkeeping)
    ladder = ladder_for(seconds, guess, study.tokens.per_epoch, study.design.seeds, rates)
    ends = (ladder.sizes[0], ladder.sizes[-1])
    study.progress.say(f"measuring the speed of {show_count(ends[0])} and {show_count(ends[1])} parameters")
    pace = [run_probe(_sized(study.base, size), study.base_dir).seconds_per_token + bookkeeping for size in ends]
    return ladder_for(seconds, price_in_seconds(ends, pace), study.tokens.per_epoch, study.design.seeds, rates)


# -- the runs ----------------------------------------------------------------------------------------------------------
def _search(study: Study, ladder: Ladder) -> float:
    """The factor on the recipe's learning rate that suits the smallest size best."""
    tried: dict[float, float] = {}
    _expect(study, [search_rung(ladder, study.base, 1.0)] * USUAL_RATES * study.design.tune)
    while study.design.tune and (factor := next_rate(tried)) is not None:
        outcome = _carry_out(study, search_rung(ladder, study.base, factor))
        tried[factor] = math.inf if outcome.loss is None else outcome.loss
    if tried and not math.isfinite(min(tried.values())):
        what = "no learning rate trains the smallest model"
        raise NumericsError(what, why=study.outcomes[0].failure, fix="begin the search at a lower `train.lr`")
    return chosen_rate(tried) if tried else 1.0


def _expect(study: Study, rungs: list[Rung]) -> None:
    """So many more runs, weighed by their FLOPs."""
    study.progress.runs = study.progress.done + len(rungs)
    study.progress.work = study.progress.work_done + sum(float(rung.size * rung.tokens) for rung in rungs)


def _carry_out(study: Study, rung: Rung) -> Outcome:
    """One run; what goes wrong is kept as the reason. Stopping signals pass through."""
    recipe = recipe_for(rung, study.base, study.tokens, str(study.home / "runs"))
    what = f"{show_count(rung.size)} parameters, {show_count(rung.tokens)} tokens, seed {rung.seed}, rate {rung.lr:.2g}"
    study.progress.announce(what)
    outcome = Outcome(rung, study.parameters[rung.size])
    folder = study.home / "runs" / f"{recipe.name}-{recipe.hash()}"
    fresh = not (folder / "report.json").exists()
    try:
        report = run(recipe, study.base_dir, console=study.progress.console, parts=study.parts, brief=True)
        forget_model(folder)
        study.first = study.first or report
        outcome = _outcome(outcome, report)
        study.progress.say(f"  loss {outcome.loss:.4f}" if outcome.loss is not None else f"  {outcome.failure}")
    except Stopped:
        raise
    except Exception as error:  # one run's failure, of any kind, must not cost the others their results
        outcome.failure = reason_of(error)
        study.progress.say(f"  failed: {outcome.failure}")
    finally:
        if fresh:
            gc.collect()  # the model and its optimizer
        study.progress.finish(float(rung.size * rung.tokens))
    study.outcomes.append(outcome)
    return outcome


def _outcome(outcome: Outcome, report: Report) -> Outcome:
    """What the run's report says of it."""
    metrics = report.evaluation.metrics if report.evaluation else {}
    loss = metrics["nll"].value if "nll" in metrics else None
    return replace(
        outcome,
        tokens=report.cost.tokens,
        loss=loss,
        bits_per_byte=metrics["bits_per_byte"].value if "bits_per_byte" in metrics else None,
        seconds=report.cost.seconds or 0.0,
        steps=report.cost.steps or 0,
        memory=report.cost.peak_memory_bytes,
        failure="" if loss is not None else "its held-out loss is not finite",
    )


def _hash(design: Design, recipe: Recipe) -> str:
    content = {"design": design.model_dump(mode="json"), "recipe": recipe.hash()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
