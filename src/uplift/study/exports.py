"""The files for other runtimes that a recipe asked for, as a table beside the model they were made from."""

from __future__ import annotations

from collections.abc import Sequence

from uplift.core.report import ExportReport
from uplift.study.word_table import WordTable
from uplift.study.wording import DASH, show_bytes, show_interval, show_metric_name, show_score

HEAD = ("file", "score", "file − model", "same answers", "size", "tokens/s", "model's", "memory")
TITLE = "Exported files"


def exports_table(exports: Sequence[tuple[str, ExportReport]]) -> WordTable:
    """One row per (stage or "", file)."""
    metrics = dict.fromkeys(show_metric_name(each.metric) for _, each in exports if each.metric)
    rows = {each.items for _, each in exports}
    lead = (
        f"Score: {', '.join(metrics)} on {' or '.join(f'{count:,}' for count in sorted(rows))} test rows, " if metrics else ""
    )
    lead += "each file opened in its own runtime. Tokens per second: one row at a time, one after the other on this machine."
    return WordTable(TITLE, lead[:1].upper() + lead[1:], HEAD, tuple(_row(stage, each) for stage, each in exports))


def _row(stage: str, found: ExportReport) -> tuple[str, ...]:
    name = f"{stage}: {found.name}" if stage else found.name
    return (
        name if found.file else f"{name} (refused)",
        show_score(found.metric, found.score.value) if found.score else DASH,
        show_interval(found.metric, found.difference, signed=True) if found.difference else DASH,
        DASH if found.agreement is None else f"{100 * found.agreement:.1f} %",
        show_bytes(found.size),
        _speed(found.tokens_per_second),
        _speed(found.original_tokens_per_second),
        show_bytes(found.memory_bytes),
    )


def _speed(tokens: float | None) -> str:
    return DASH if tokens is None else f"{tokens:,.0f}"
