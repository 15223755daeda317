"""The steps of `data.prepare` on a recipe's rows: training rows pass all of them, other parts are changed but lose no row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from uplift.core.errors import DataError, Place
from uplift.core.prepare_section import Step
from uplift.core.recipe import ChatTask, Data, Task
from uplift.core.report import StepReport
from uplift.data.clean.columns import LOOKED_AT, choose_columns
from uplift.data.clean.output import Collected
from uplift.data.clean.pipeline import Changed, Layout, Pipeline, Record, Removed
from uplift.data.clean.steps import QualityMaker, changes_alone, check_texts, plan_steps
from uplift.data.rows import RowSet


@dataclass(frozen=True)
class Prepared:
    """Rows after the steps. ``rows.rows_in`` leaves the dropped ones out, so it is still rows + quarantined."""

    rows: RowSet
    dropped: tuple[Removed, ...] = ()
    changed: tuple[Changed, ...] = ()
    steps: tuple[StepReport, ...] = ()


def prepare_train(rows: RowSet, data: Data, task: Task, base_dir: Path, quality: QualityMaker | None) -> Prepared:
    """The training rows after all steps; `decontaminate` also looks for the recipe's own validation and test sources.

    Raises DataError when no row is left, RecipeError when a step cannot be made.
    """
    if not data.prepare:
        return Prepared(rows)
    own = [source for source in (data.validation, data.test) if source is not None]
    planned = plan_steps(data.prepare, base_dir, quality=quality, against=own)
    found = Collected()
    layout = _layout(rows, task)
    check_texts(data.prepare, layout.columns, rows.rows[:LOOKED_AT])
    outcome = Pipeline(planned, [layout]).run(_records(rows), found)
    if not found.rows:
        told = ", ".join(
            f"{count:,} by `{step.use}` ({rule})" for step in outcome.steps for rule, count in step.dropped.items()
        )
        raise DataError(
            "`data.prepare` leaves no training row",
            where=Place(rows.rows[0].origin.file, key="data.prepare"),
            why=f"dropped: {told}" if told else f"{len(found.bad)} rows hold no text",
            fix="`uplift data clean --dry-run` shows examples; loosen or remove a step",
        )
    left = replace(
        rows, rows=found.rows, quarantined=[*rows.quarantined, *found.bad], rows_in=rows.rows_in - outcome.rows_dropped
    )
    return Prepared(left, tuple(found.dropped), tuple(found.altered), outcome.steps)


def prepare_other(rows: RowSet, sections: Sequence[Step], task: Task, base_dir: Path) -> Prepared:
    """Rows of another part after those steps that only change texts: every row stays."""
    planned = [replace(step, may_drop=False) for step in plan_steps(changes_alone(sections), base_dir)]
    if not planned:
        return Prepared(rows)
    found = Collected()
    Pipeline(planned, [_layout(rows, task)]).run(_records(rows), found)
    left = replace(rows, rows=found.rows, quarantined=[*rows.quarantined, *found.bad])
    return Prepared(left, changed=tuple(found.altered))


def _layout(rows: RowSet, task: Task) -> Layout:
    """The column the task reads; chats are found by their format."""
    named = () if isinstance(task, ChatTask) else (task.text,)
    return Layout(choose_columns(rows.rows[:LOOKED_AT], named, "task.text"))


def _records(rows: RowSet) -> Iterable[Record]:
    return (Record(0, row.values, row.origin) for row in rows.rows)
