"""``uplift run``: one recipe from rows to a saved model and a report that says what it is worth."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console

from uplift.core.errors import ProofError
from uplift.core.recipe import Recipe
from uplift.core.report import Cost, DataReport, EffectReport, Evaluation, Predicted, Report
from uplift.core.run import Run
from uplift.core.storage import commit_directory, write_atomically
from uplift.core.values import Corpus, Sample
from uplift.data.dataset import Parts
from uplift.evaluate.base import measured_base
from uplift.evaluate.tasks import Measured, chosen_rows, evaluate_model, to_evaluation
from uplift.learn.assemble import Assembly, assemble, build_engine, edit_model, finish_model
from uplift.learn.engine import Engine
from uplift.learn.parallel import Parallel, processes
from uplift.learn.preflight import preflight
from uplift.learn.state import optimizer_bytes
from uplift.study.machine import choose_threads, peak_memory_bytes
from uplift.study.report_html import render_html
from uplift.verbs.command import command_line
from uplift.verbs.display import Display
from uplift.verbs.exports import add_exports, check_exports
from uplift.verbs.robustness import Attacks
from uplift.verbs.samples import written_samples

CURVES = ("loss", "validation_loss", "gradient_norm", "lr", "tokens_per_second")


@dataclass
class Spent:
    """Cost of a run as it adds up, and what was predicted before training."""

    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    seconds: float = 0.0
    tokens: int = 0
    steps: int = 0
    trainable: int = 0
    optimizer_bytes: int = 0
    evaluation_seconds: float = 0.0
    predicted: Predicted | None = None


def run(
    recipe: Recipe,
    base_dir: Path,
    *,
    console: Console | None = None,
    resume: bool = True,
    parts: Parts | None = None,
    brief: bool = False,
) -> Report:
    """Carry out a recipe; a finished one is not repeated, an interrupted one continues from its last verified step.

    ``base_dir``: where relative data and model paths start; ``parts``: the rows, when they were read before; ``brief``: show
    less. Raises UpliftError subclasses; ProofError after the report is written when a technique did nothing, and ParityError
    when an exported file differs too much from the model.
    """
    display = Display(console, brief)
    check_exports(recipe)
    with processes(recipe.hardware) as parallel:
        torch.set_num_threads(choose_threads() if recipe.hardware.threads == "auto" else recipe.hardware.threads)
        with open_run(recipe, parallel) as folder:
            if resume and parallel.any(folder.finished):
                # All processes read the first one's report: only it writes one.
                report = finished_run(Path(parallel.share_text(str(folder.path))))
                display.stage(f"already finished: {folder.path}")
                _forget_checkpoints(folder)
            else:
                if not resume:
                    folder.report_file.unlink(missing_ok=True)
                    _forget_checkpoints(folder)
                report = _carry_out(recipe, base_dir, folder, parallel, display, parts)
            return add_exports(recipe, base_dir, folder, report, display) if parallel.first else report


def finished_run(path: Path) -> Report:
    """The report of a finished run's folder."""
    report = Run.open(path).report()
    assert isinstance(report, Report)
    return report


def open_run(recipe: Recipe, parallel: Parallel) -> Run:
    """The folder of this recipe; processes other than the first get a scratch folder beside it that nobody reads."""
    root = Path(recipe.output_dir)
    if not parallel.first:
        root = root / ".ranks" / str(parallel.rank)
    return Run.create(recipe.model_dump(mode="json"), root, recipe.name, recipe.hash())


def _carry_out(
    recipe: Recipe, base_dir: Path, folder: Run, parallel: Parallel, display: Display, parts: Parts | None
) -> Report:
    spent = Spent()
    display.stage(f"run folder {folder.path}")
    assembly = assemble(recipe, base_dir, parallel, parts)
    _tell_data(assembly.parts, folder, display)
    base = _base(assembly, folder, display) if recipe.evaluate.base else None
    attacks = Attacks(assembly, base_dir, folder.path.parent / ".base", display)
    if recipe.evaluate.base:
        attacks.before()
    if assembly.trains:
        _train(assembly, folder, parallel, display, spent)
    elif assembly.makes_model:
        edited = edit_model(assembly.model, assembly.techniques, recipe.seed)
        assembly.model = finish_model(edited, assembly.techniques)
    assembly.model.eval()
    save_model(assembly, folder, display)
    measured = _measure(assembly, base, display, spent)
    evaluation = to_evaluation(measured, base, resamples=recipe.evaluate.bootstrap) if measured else None
    if evaluation is not None:
        evaluation = evaluation.model_copy(update={"robustness": attacks.after()})
    samples = written_samples(assembly) if recipe.evaluate.samples else ()
    effects = [EffectReport.of(technique.effect()) for technique in assembly.techniques]
    notes = measured.notes if measured else ()
    report = _report(assembly, folder, evaluation, notes, effects, spent).model_copy(update={"samples": samples})
    if parallel.first:
        if measured is not None:
            write_atomically(folder.path / "outcomes.json", json.dumps(measured.outcomes.to_json()))
        write_atomically(folder.report_page, render_html(report))
        folder.write_report(report)  # last: from here on the run counts as finished
        _forget_checkpoints(folder)
    _require_proofs(report, folder)
    return report


def _tell_data(parts: Parts, folder: Run, display: Display) -> None:
    for file, rows in (
        (folder.quarantine_file, parts.quarantined),
        (folder.removed_file, parts.dropped),
        (folder.changed_file, parts.changed),
    ):
        if rows:
            write_atomically(file, "".join(json.dumps(row.as_json(), ensure_ascii=False) + "\n" for row in rows))
    sizes = f"{len(parts.train)} train, {len(parts.validation)} validation, {len(parts.test)} test"
    dropped = f"{len(parts.dropped)} dropped, " if parts.prepared else ""
    display.stage(f"{parts.rows_in} rows: {sizes}, {dropped}{len(parts.quarantined)} quarantined")
    for note in parts.notes:
        display.stage(note)


def chosen_test(assembly: Assembly) -> list[int]:
    """Indices of the test rows to use (``evaluate.limit``)."""
    return chosen_rows(assembly.parts.test, assembly.recipe.evaluate.limit)


def _rows(corpus: Corpus, indices: Iterable[int]) -> list[Sample]:
    return [corpus[index] for index in indices]


def _base(assembly: Assembly, folder: Run, display: Display) -> Measured | None:
    """The untouched model on the test rows; remembered beside the run folders, since many runs share it."""
    if not len(assembly.plain["test"]):
        return None
    samples = _rows(assembly.plain["test"], chosen_test(assembly))
    display.stage(f"measuring the model as it is on {len(samples)} test rows")
    recipe = assembly.recipe
    return measured_base(
        assembly.model,
        samples,
        recipe.task,
        assembly.encoder,
        folder.path.parent / ".base",
        seed=recipe.seed,
        bootstrap=recipe.evaluate.bootstrap,
        batch_tokens=recipe.train.batch_tokens,
    )


def _train(assembly: Assembly, folder: Run, parallel: Parallel, display: Display, spent: Spent) -> None:
    recipe = assembly.recipe
    engine = build_engine(assembly, folder, parallel, display.step, display.audit)
    folder.write_identity(engine.state.identity)
    if not engine.resume():
        display.stage("preflight: longest batch, speed, checkpoint round trip")
        _predict(engine, preflight(engine, recipe.train.budget.seconds), spent, folder)
    else:
        display.stage(f"continuing from step {engine.state.step}")
        spent.predicted = _predicted(folder)
    with display.training():
        state = engine.train()
    spent.seconds, spent.tokens, spent.steps = engine.seconds, state.tokens, state.step
    spent.trainable = sum(parameter.numel() for parameter in engine.parameters.values())
    spent.optimizer_bytes = optimizer_bytes(engine.optimizer)
    if state.stopped:
        display.stage(state.stopped)
    assembly.model = finish_model(assembly.model, assembly.techniques)


def _predict(engine: Engine, seconds: float, spent: Spent, folder: Run) -> None:
    """Keep what the measured speed foretells, to stand beside what came out."""
    tokens = int(engine.planned * engine.feed.tokens / engine.feed.size)
    spent.predicted = Predicted(seconds=seconds, tokens=tokens)
    folder.event("predicted", f"{seconds:.0f} s for {tokens} tokens", seconds=seconds, tokens=tokens)


def _predicted(folder: Run) -> Predicted | None:
    events = folder.events("predicted")
    return Predicted(seconds=events[-1].data["seconds"], tokens=events[-1].data["tokens"]) if events else None


def save_model(assembly: Assembly, folder: Run, display: Display) -> None:
    """Write ``model/`` (an adapter that stays unmerged inside it, a merged one beside it) under the commit protocol."""
    if assembly.makes_model:
        display.stage("saving the model")
        commit_directory(folder.model_dir, assembly.model.save, {"recipe": assembly.recipe.hash()})
        adapter = getattr(assembly.model, "merged_adapter", None)  # kept by a technique that merged it
        if adapter is not None:
            commit_directory(folder.adapter_dir, adapter.save, {"recipe": assembly.recipe.hash()})


def _measure(assembly: Assembly, base: Measured | None, display: Display, spent: Spent) -> Measured | None:
    recipe, corpus = assembly.recipe, assembly.corpora["test"]
    if not len(corpus):
        assembly.warnings.append("nothing was measured: the recipe has no test part (`data.split.test` or `data.test`)")
        return None
    samples = _rows(corpus, chosen_test(assembly))
    untouched = not assembly.makes_model and samples == _rows(assembly.plain["test"], chosen_test(assembly))
    if untouched and base is not None:
        spent.evaluation_seconds = base.seconds
        return base
    display.stage(f"measuring the result on {len(samples)} test rows")
    begin = time.monotonic()
    measured = evaluate_model(
        assembly.model,
        samples,
        recipe.task,
        assembly.encoder,
        bootstrap=recipe.evaluate.bootstrap,
        batch_tokens=recipe.train.batch_tokens,
    )
    spent.evaluation_seconds = time.monotonic() - begin
    return measured


def _report(
    assembly: Assembly,
    folder: Run,
    evaluation: Evaluation | None,
    notes: Sequence[str],
    effects: list[EffectReport],
    spent: Spent,
) -> Report:
    recipe, parts = assembly.recipe, assembly.parts
    silent = [effect.technique for effect in effects if not effect.passed]
    cost = Cost(
        seconds=spent.seconds,
        tokens=spent.tokens,
        peak_memory_bytes=peak_memory_bytes(),
        predicted=spent.predicted,
        evaluation_seconds=spent.evaluation_seconds,
        disk_bytes=_size(folder.path),
        steps=spent.steps,
        trainable_parameters=spent.trainable,
        optimizer_bytes=spent.optimizer_bytes,
        model_bytes=_size(folder.adapter_dir if folder.adapter_dir.exists() else folder.model_dir),
    )
    reasons: dict[str, int] = {}
    for bad in parts.quarantined:
        reasons[bad.rule] = reasons.get(bad.rule, 0) + 1
    data = DataReport(
        rows_in=parts.rows_in,
        rows_kept=parts.rows_kept,
        rows_dropped=len(parts.dropped),
        rows_quarantined=len(parts.quarantined),
        train=len(parts.train),
        validation=len(parts.validation),
        test=len(parts.test),
        labels=parts.labels,
        reasons=reasons,
        prepared=parts.prepared,
        leaked=parts.leakage.ngram,
        fingerprint=parts.fingerprint,
    )
    return Report(
        name=recipe.name,
        hash=recipe.hash(),
        status="failed" if silent else "finished",
        reason=f"no measurable effect of: {', '.join(silent)}" if silent else "",
        evaluation=evaluation,
        cost=cost,
        effects=tuple(effects),
        data=data,
        recipe=recipe.model_dump(mode="json"),
        events=folder.event_summary(),
        warnings=tuple(assembly.warnings),
        notes=(*parts.notes, *assembly.model.notes, *notes),
        environment=folder.identity(),
        command=command_line("run"),
        started=spent.started,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=recipe.seed,
        curves=folder.curves(CURVES),
    )


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.exists() else 0


def _forget_checkpoints(folder: Run) -> None:
    """The work is done and the model is saved: the way there need not take room."""
    for path in (folder.checkpoints, folder.path / "best"):
        shutil.rmtree(path, ignore_errors=True)


def _require_proofs(report: Report, folder: Run) -> None:
    failed = [effect for effect in report.effects if not effect.passed]
    if failed:
        listed = "; ".join(f"`{effect.technique}`: {effect.claim} (measured {effect.value})" for effect in failed)
        raise ProofError(
            "an option of this recipe did nothing",
            where=str(folder.path),
            why=listed,
            fix="remove it, raise its strength, or train longer; the report is in the run folder",
        )
