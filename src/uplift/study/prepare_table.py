"""What the steps of `data.prepare` did, as a table that the terminal and the page show alike."""

from __future__ import annotations

from collections.abc import Sequence

from uplift.core.report import StepReport
from uplift.study.word_table import WordTable


def prepare_table(steps: Sequence[StepReport]) -> WordTable:
    """One row per step: how many rows came, went and were changed, and by which rules."""
    rows = tuple(
        (step.use, f"{step.rows_in:,}", f"{step.rows_dropped:,}", f"{step.changed:,}", rules_in_words(step)) for step in steps
    )
    return WordTable(
        "Preparation",
        "What each step of `data.prepare` did to the training rows; every dropped row stands in `removed.jsonl`, "
        "every changed one in `changed.jsonl`.",
        ("step", "rows in", "dropped", "changed", "by rule"),
        rows,
        ("by rule",),
    )


def rules_in_words(step: StepReport) -> str:
    """The rules of a step, those that struck most first: rows dropped, then changes."""
    dropped = sorted(step.dropped.items(), key=lambda item: (-item[1], item[0]))
    changes = sorted(step.changes.items(), key=lambda item: (-item[1], item[0]))
    words = [*(f"{rule} {count:,}" for rule, count in dropped), *(f"{rule} × {count:,}" for rule, count in changes)]
    words += [f"{step.failed:,} failed"] if step.failed else []
    return ", ".join(words) or "nothing"
