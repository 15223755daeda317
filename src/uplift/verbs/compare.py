"""``uplift compare``: run every arm and seed on the same split under the same budget, then rank, test and recommend.

::

    <name>-<hash>/
      arms/<arm>-<hash>/   one run folder per arm and seed
      report.json  report.html
"""

from __future__ import annotations

import gc
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from uplift.core.errors import DataError, Stopped, UpliftError
from uplift.core.recipe import Arm, ClassifyTask, Comparison, Recipe, RecipeArm
from uplift.core.recipe_file import arm_recipe
from uplift.core.registry import technique_class
from uplift.core.report import ComparisonReport, DataReport, Report
from uplift.core.run import Run
from uplift.core.storage import write_atomically
from uplift.data.dataset import Parts, load_parts
from uplift.evaluate.outcomes import Outcomes, score
from uplift.evaluate.tasks import chosen_rows
from uplift.learn.assemble import HeadKind, resolve_head
from uplift.learn.quality import quality_step
from uplift.model.opening import model_kind
from uplift.study.baseline import tfidf
from uplift.study.compare import ArmResult, Conclusion, Cost, conclude
from uplift.study.comparison_report import ArmRecord, comparison_report, summarise
from uplift.study.machine import peak_memory_bytes, reset_peak_memory
from uplift.study.report_html import render_html
from uplift.study.wording import show_metric_name, show_score, show_seconds
from uplift.verbs.command import command_line
from uplift.verbs.run import run

PLACEBO = "placebo"
OVERHEAD_SECONDS = 30.0
"""Loading, checks and evaluation of a trained arm, until finished arms say better."""


@dataclass
class Study:
    """A comparison in progress: what has been run so far, and the time it took."""

    comparison: Comparison
    base_dir: Path
    folder: Path
    console: Console | None
    jobs: int
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    parts: dict[str, Parts] = field(default_factory=dict)
    records: dict[str, ArmRecord] = field(default_factory=dict)
    results: dict[str, ArmResult] = field(default_factory=dict)
    scores: list[tuple[str, str, str, str]] = field(default_factory=list)

    def say(self, text: str) -> None:
        """One line for people."""
        if self.console:
            self.console.print(text, highlight=False, markup=False)

    def announce(self, name: str, seed: int) -> None:
        """Which job starts, how long it has taken so far and how long it may still take."""
        spent = time.monotonic() - self.started
        each = spent / self.done if self.done else (self.comparison.budget.seconds or 0.0) + OVERHEAD_SECONDS
        left = show_seconds(each * (self.jobs - self.done))
        self.say(f"\n[{self.done + 1} of {self.jobs}] {name}, seed {seed}: {show_seconds(spent)} so far, about {left} left")

    def tell(self, name: str, outcomes: Outcomes, cost: Cost) -> None:
        """The score of the job that just ended, in the table of all so far."""
        shown = show_score(outcomes.metric, score(outcomes))
        self.scores.append((name, shown, show_seconds(cost.seconds), show_seconds(cost.evaluation_seconds)))
        if self.console:
            table = Table("so far", show_metric_name(outcomes.metric), "training", "evaluation", box=None, header_style="bold")
            for row in self.scores:
                table.add_row(*row)
            self.console.print(table)


def compare(comparison: Comparison, base_dir: Path, *, console: Console | None = None) -> ComparisonReport:
    """Carry out a comparison; runs that finished earlier are not repeated, one that was interrupted continues.

    An arm that fails is listed with its reason and stops no other. Raises Stopped on a signal (the same command continues),
    DataError when arms would be measured on different test rows.
    """
    content = comparison.model_dump(mode="json")
    hash = comparison_hash(comparison)
    with Run.create(content, Path(comparison.output_dir), comparison.name, hash) as folder:
        study = Study(comparison, base_dir, folder.path, console, jobs=_count_jobs(comparison, base_dir))
        started = datetime.now(UTC).isoformat(timespec="seconds")
        for arm in comparison.arms:
            study.results[arm.name] = _run_arm(arm, study)
        arms = list(study.results.values())
        conclusion = conclude(arms, comparison.seeds, resamples=comparison.base.evaluate.bootstrap)
        if comparison.placebo and conclusion.ranking:
            placebo = _run_placebo(conclusion, study)
            conclusion = conclude(arms, comparison.seeds, placebo=placebo, resamples=comparison.base.evaluate.bootstrap)
        report = comparison_report(
            comparison,
            conclusion,
            study.records,
            _data_report(study),
            hash=hash,
            command=command_line("compare"),
            started=started,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            environment=_environment(study),
        )
        folder.write_report(report)
        write_atomically(folder.report_page, render_html(report))
        study.say(f"\nreport: {folder.report_page}")
    return report


def comparison_hash(comparison: Comparison) -> str:
    """12 hex digits that identify everything that shapes the result."""
    content = comparison.model_dump(mode="json", exclude={"name", "output_dir"})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


# -- arms --------------------------------------------------------------------------------------------------------------
def recipe_for(arm: RecipeArm, seed: int, study: Study) -> Recipe:
    """The recipe of one arm and seed, its run folder inside the comparison's."""
    recipe = arm_recipe(study.comparison, arm)
    return recipe.model_copy(update={"seed": seed, "output_dir": str(study.folder / "arms")})


def kind_of_arm(arm: Arm, comparison: Comparison) -> str:
    """``baseline``, ``prompted`` or ``trained``."""
    if not isinstance(arm, RecipeArm):
        return "baseline"
    return "prompted" if arm_recipe(comparison, arm).train.steps == 0 else "trained"


def ignores_seed(arm: Arm, comparison: Comparison, base_dir: Path) -> bool:
    """Whether every seed would give the same result: nothing is trained and no head is drawn at random."""
    if not isinstance(arm, RecipeArm):
        return True
    recipe = arm_recipe(comparison, arm)
    return recipe.train.steps == 0 and _head(recipe, base_dir) == "language"


def _head(recipe: Recipe, base_dir: Path) -> HeadKind:
    return resolve_head(recipe.task, model_kind(recipe.model, base_dir))


def _count_jobs(comparison: Comparison, base_dir: Path) -> int:
    count = 0
    for arm in comparison.arms:
        try:
            count += 1 if ignores_seed(arm, comparison, base_dir) else len(comparison.seeds)
        except UpliftError:  # the arm will fail and say why when its turn comes
            count += 1
    return count + len(comparison.seeds) * comparison.placebo


def _run_arm(arm: Arm, study: Study) -> ArmResult:
    """All seeds of an arm; what goes wrong is kept as the reason."""
    comparison, record = study.comparison, ArmRecord()
    study.records[arm.name] = record
    try:
        kind, repeats = kind_of_arm(arm, comparison), ignores_seed(arm, comparison, study.base_dir)
    except UpliftError as error:  # its model cannot be had: no seed can run
        study.done += 1
        study.say(f"\n{arm.name} failed: {reason_of(error)}")
        return ArmResult(arm.name, "trained", {}, failures=dict.fromkeys(comparison.seeds, reason_of(error)))
    seeds = comparison.seeds[:1] if repeats else comparison.seeds
    outcomes, cost, failures = _run_seeds(arm.name, seeds, study, lambda seed: _run_seed(arm, seed, study, record))
    return ArmResult(arm.name, kind, outcomes, cost, failures, repeats)


def _run_seeds(
    name: str, seeds: Sequence[int], study: Study, run_one: Callable[[int], tuple[Outcomes, Cost]]
) -> tuple[dict[int, Outcomes], Cost, dict[int, str]]:
    """(outcomes by seed, mean cost, reasons of seeds that failed). Stopping signals pass through."""
    outcomes: dict[int, Outcomes] = {}
    failures: dict[int, str] = {}
    costs: list[Cost] = []
    for seed in seeds:
        study.announce(name, seed)
        try:
            outcomes[seed], cost = run_one(seed)
            costs.append(cost)
            study.tell(f"{name} (seed {seed})", outcomes[seed], cost)
        except Stopped:
            raise
        except Exception as error:  # one arm's failure, of any kind, must not cost the others their results
            failures[seed] = reason_of(error)
            study.say(f"  failed: {failures[seed]}")
        finally:
            gc.collect()
            study.done += 1
    return outcomes, _mean_cost(costs), failures


def reason_of(error: Exception) -> str:
    """Why something failed, on one line."""
    if isinstance(error, UpliftError):
        return f"{error.what}" + (f" ({error.why})" if error.why else "")
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def _run_seed(arm: Arm, seed: int, study: Study, record: ArmRecord) -> tuple[Outcomes, Cost]:
    if not isinstance(arm, RecipeArm):
        return _run_baseline(study, record)
    recipe = recipe_for(arm, seed, study)
    record.summary = summarise(
        arm.change, [technique.use for technique in recipe.techniques], kind_of_arm(arm, study.comparison)
    )
    return _run_recipe(recipe, study, record)


def _run_recipe(recipe: Recipe, study: Study, record: ArmRecord) -> tuple[Outcomes, Cost]:
    """One run and its per-item outcomes, read back from its folder (also when it had finished earlier)."""
    reset_peak_memory()
    report = run(recipe, study.base_dir, console=study.console, parts=_parts(recipe, study), brief=True)
    folder = Path(recipe.output_dir) / f"{recipe.name}-{recipe.hash()}"
    record.folder = record.folder or str(folder.relative_to(study.folder))
    return read_outcomes(folder), _cost_of(report, recipe, record)


def read_outcomes(folder: Path) -> Outcomes:
    """The per-item outcomes of a run folder. Raises DataError when it has none."""
    file = folder / "outcomes.json"
    try:
        return Outcomes.from_json(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError) as error:
        fix = "give the recipe a test part (`data.split.test`), or delete the run folder and start again"
        raise DataError("the run has no per-item outcomes", where=str(file), why=str(error), fix=fix) from error


def _cost_of(report: Report, recipe: Recipe, record: ArmRecord) -> Cost:
    record.reports[recipe.seed] = report
    cost = report.cost
    return Cost(
        seconds=cost.seconds or 0.0,
        evaluation_seconds=cost.evaluation_seconds or 0.0,
        tokens=cost.tokens,
        peak_memory_bytes=cost.peak_memory_bytes,
        trainable_parameters=cost.trainable_parameters or 0,
        size_bytes=cost.model_bytes or 0,
    )


def _run_baseline(study: Study, record: ArmRecord) -> tuple[Outcomes, Cost]:
    """TF-IDF on the base recipe's rows, the same test rows as everyone."""
    base = study.comparison.base
    if not isinstance(base.task, ClassifyTask):
        raise DataError("TF-IDF classifies, and the task is not classification", fix="remove the `tfidf` arm")
    reset_peak_memory()
    parts = _parts(base, study)
    test = [parts.test[index] for index in chosen_rows(parts.test, base.evaluate.limit)]
    fitted = tfidf(parts.train, test, parts.labels, parts.validation, resamples=base.evaluate.bootstrap)
    record.summary = f"TF-IDF and logistic regression, {fitted.note}"
    cost = Cost(fitted.seconds, fitted.measured.seconds, 0, peak_memory_bytes(), fitted.parameters, fitted.size_bytes)
    return fitted.measured.outcomes, cost


def _parts(recipe: Recipe, study: Study) -> Parts:
    """The recipe's rows, read once for all arms that ask for the same ones."""
    head = _head(recipe, study.base_dir)
    key = json.dumps([recipe.data.model_dump(mode="json"), recipe.task.model_dump(mode="json"), head], sort_keys=True)
    if key not in study.parts:
        study.parts[key] = load_parts(recipe.data, recipe.task, study.base_dir, head, quality=quality_step)
    return study.parts[key]


def _mean_cost(costs: list[Cost]) -> Cost:
    if not costs:
        return Cost()
    count = len(costs)
    return Cost(
        seconds=sum(cost.seconds for cost in costs) / count,
        evaluation_seconds=sum(cost.evaluation_seconds for cost in costs) / count,
        tokens=sum(cost.tokens for cost in costs) / count,
        peak_memory_bytes=max(cost.peak_memory_bytes for cost in costs),
        trainable_parameters=costs[0].trainable_parameters,
        size_bytes=max(cost.size_bytes for cost in costs),
    )


# -- placebo -----------------------------------------------------------------------------------------------------------
def _run_placebo(conclusion: Conclusion, study: Study) -> ArmResult | None:
    """The recommended arm (the best trained one, where that is not trained) again, on training labels that are shuffled."""
    arms = {arm.name: arm for arm in study.comparison.arms}
    trained = [entry.arm.name for entry in conclusion.ranking if entry.arm.kind == "trained"]
    best = conclusion.recommended if conclusion.recommended in trained else next(iter(trained), None)
    if best is None:
        study.say("no placebo: no arm was trained")
        return None
    arm = arms[best]
    assert isinstance(arm, RecipeArm)
    shuffled = technique_class("shuffled_labels").model_validate({"use": "shuffled_labels"})

    def run_one(seed: int) -> tuple[Outcomes, Cost]:
        recipe = recipe_for(arm, seed, study)
        changes = {"name": f"{best}-{PLACEBO}"[:64], "techniques": [*recipe.techniques, shuffled]}
        return _run_recipe(recipe.model_copy(update=changes), study, ArmRecord())

    outcomes, cost, failures = _run_seeds(f"{best} on shuffled labels", study.comparison.seeds, study, run_one)
    return ArmResult(best, "trained", outcomes, cost, failures)


# -- report ------------------------------------------------------------------------------------------------------------
def _data_report(study: Study) -> DataReport | None:
    reports = [report for record in study.records.values() for report in record.reports.values()]
    return reports[0].data if reports else None


def _environment(study: Study) -> dict[str, str]:
    first = next((report for record in study.records.values() for report in record.reports.values()), None)
    keep = ("torch", "transformers", "peft", "llm-uplift", "device", "precision", "threads", "processes")
    return {name: value for name, value in first.environment.items() if name in keep} if first else {}
