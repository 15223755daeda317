"""The data card: where cleaned data came from, what each step did to it, and the hash of what came out.

Nothing in it depends on the time, the machine or the number of workers: the same input gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

import uplift
from uplift.core.prepare_section import Step
from uplift.core.report import Count, ReportPart, StepReport
from uplift.core.wording import shown
from uplift.data.clean.pipeline import Outcome


class CardSource(ReportPart):
    """A source: its name, what was read, its rows, the columns worked on, and the hash of its bytes."""

    name: str
    format: str
    rows: Count
    columns: tuple[str, ...]
    sha256: str


class CardFile(ReportPart):
    """A written file."""

    name: str
    rows: Count
    sha256: str


class Card(ReportPart):
    """What happened to the data: ``rows_in = rows_kept + rows_dropped + rows_quarantined``."""

    sources: tuple[CardSource, ...]
    rows_in: Count
    rows_kept: Count
    rows_dropped: Count
    rows_quarantined: Count
    characters_in: Count
    """Characters of the texts that were worked on."""
    characters_out: Count
    reasons: Mapping[str, Count] = Field(default_factory=dict)
    """Quarantined rows by rule."""
    steps: tuple[StepReport, ...]
    settings: tuple[Mapping[str, Any], ...]
    """Every option of each step, in the order of ``steps``."""
    output: CardFile | None = None
    notes: tuple[str, ...] = ()
    version: str = uplift.__version__

    def to_bytes(self) -> bytes:
        """The card as JSON, always the same for the same content."""
        return (json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()

    def in_words(self) -> str:
        """Where the rows went, as a sum."""
        lost = f"{self.rows_dropped:,} dropped + {self.rows_quarantined:,} quarantined"
        return f"{self.rows_in:,} rows in = {self.rows_kept:,} kept + {lost}"

    def to_markdown(self) -> str:
        """The card for people."""
        lines = ["# Data card", "", f"{self.in_words()}.", ""]
        lines += [f"{self.characters_in:,} characters in, {self.characters_out:,} out. Uplift {self.version}.", ""]
        lines += ["## Sources", "", "| source | format | rows | columns | sha256 |", "|---|---|---|---|---|"]
        for source in self.sources:
            cells = [source.name, source.format, f"{source.rows:,}", ", ".join(source.columns), source.sha256]
            lines.append(_row(cells))
        lines += [
            "",
            "## Steps",
            "",
            "| step | rows in | rows out | dropped | changed | settings |",
            "|---|---|---|---|---|---|",
        ]
        for step, settings in zip(self.steps, self.settings, strict=True):
            told = ", ".join(f"{name}: {shown(value, 200)}" for name, value in settings.items() if name != "use")
            counts = [f"{step.rows_in:,}", f"{step.rows_out:,}", f"{step.rows_dropped:,}", f"{step.changed:,}"]
            lines.append(_row([step.use, *counts, told]))
        lines += ["", "## Rules", "", "| step | rule | rows dropped | changes |", "|---|---|---|---|"]
        for step in self.steps:
            lines += [_row([step.use, rule, f"{count:,}", ""]) for rule, count in step.dropped.items()]
            lines += [_row([step.use, rule, "", f"{count:,}"]) for rule, count in step.changes.items()]
        lines += [_row(["reading", rule, f"{count:,} (quarantined)", ""]) for rule, count in self.reasons.items()]
        if self.output is not None:
            lines += ["", "## Output", "", f"`{self.output.name}`: {self.output.rows:,} rows, sha256 {self.output.sha256}"]
        lines += [""] * bool(self.notes) + [f"* {note}" for note in self.notes]
        return "\n".join([*lines, ""])


def make_card(
    sources: Sequence[CardSource],
    sections: Sequence[Step],
    outcome: Outcome,
    output: CardFile | None,
    notes: Sequence[str] = (),
) -> Card:
    """The card of one cleaning."""
    return Card(
        sources=tuple(sources),
        rows_in=outcome.rows_in,
        rows_kept=outcome.rows_kept,
        rows_dropped=outcome.rows_dropped,
        rows_quarantined=outcome.rows_quarantined,
        characters_in=outcome.characters_in,
        characters_out=outcome.characters_out,
        reasons=dict(sorted(outcome.reasons.items())),
        steps=outcome.steps,
        settings=tuple(section.model_dump(mode="json") for section in sections),
        output=output,
        notes=tuple(notes),
    )


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"
