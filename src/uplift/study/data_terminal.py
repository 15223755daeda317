"""What was found about a data set on one screen of the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from uplift.data.explore.findings import Inspection
from uplift.study.data_advice import beyond, per_cent
from uplift.study.data_page import headline
from uplift.study.wording import visible

MARKS = {"fix": ("!", "bold red"), "look": ("?", "yellow"), "good": ("+", "green")}
MOST_ADVICE = 9
MOST_LABELS = 6


def render_data_terminal(found: Inspection, console: Console, page: Path | None = None) -> None:
    """Print the summary; ``page`` is where the whole page lies."""
    console.print(Text(visible(headline(found)), style="bold"))
    told = _facts(found)
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True, min_width=max(len(name) for name, _ in told))
    facts.add_column(overflow="ellipsis", no_wrap=True)
    for name, value in told:
        facts.add_row(name, Text(visible(value)))
    console.print(facts)
    for each in found.advice[:MOST_ADVICE]:
        mark, style = MARKS[each.weight]
        line = Text.assemble((f"{mark} ", style), visible(each.text), (f"; {visible(each.todo)}" if each.todo else "", "dim"))
        console.print(line, highlight=False)
    if len(found.advice) > MOST_ADVICE:
        console.print(f"  and {len(found.advice) - MOST_ADVICE} more on the page", style="dim", highlight=False)
    if page is not None:
        console.print(f"page: {page}", markup=False, highlight=False)


def _facts(found: Inspection) -> list[tuple[str, str]]:
    over, same, tokens = found.overview, found.duplicates, found.tokens
    columns = ", ".join(f"{column.name} ({column.use})" if column.use else column.name for column in over.columns)
    facts = [("rows", f"{over.rows_in:,} read = {over.rows:,} used + {over.quarantined:,} put aside"), ("columns", columns)]
    if tokens:
        own = tokens.encoded
        facts.append(("tokens", f"median {own.p50:,.0f}, 95 % {own.p95:,.0f}, 99 % {own.p99:,.0f}, most {own.most:,}"))
        facts.append(("max_length", f"{tokens.suggested_length:,} suggested; {beyond(tokens)}"))
    else:
        own = found.lengths.words
        facts.append(("words", f"median {own.p50:,.0f}, 95 % {own.p95:,.0f}, 99 % {own.p99:,.0f}, most {own.most:,}"))
    facts.append(("duplicates", f"{same.normalized:,} repeat a row; nearly: {same.near:,} of {same.sampled:,}"))
    if found.labels:
        shown = ", ".join(f"{each.label} {per_cent(each.share)}" for each in found.labels.counts[:MOST_LABELS])
        facts.append(("labels", shown + (", ..." if len(found.labels.counts) > MOST_LABELS else "")))
    if found.languages and found.languages.languages:
        facts.append(("languages", ", ".join(f"{each.code} {per_cent(each.share)}" for each in found.languages.languages[:5])))
    return facts
