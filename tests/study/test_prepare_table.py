"""What `data.prepare` did is shown alike in the terminal and on the page, and adds up."""

from __future__ import annotations

import io

import pytest
from pydantic import ValidationError
from rich.console import Console

from uplift.core.report import DataReport, StepReport
from uplift.study.prepare_table import prepare_table
from uplift.study.report_sections import data_section
from uplift.study.report_terminal import render_terminal
from uplift.testing.reports import sample_report

STEPS = (
    StepReport(use="repair", rows_in=100, rows_out=99, failed=1, changed=7, changes={"spaces": 9, "encoding": 12}),
    StepReport(use="dedup", rows_in=99, rows_out=89, dropped={"exact": 3, "near": 7}),
    StepReport(use="pii", rows_in=89, rows_out=89),
)
DATA = DataReport(rows_in=100, rows_kept=89, rows_dropped=10, rows_quarantined=1, prepared=STEPS, reasons={"step_failed": 1})


def test_the_table_names_what_struck_most_first() -> None:
    assert prepare_table(STEPS).rows == (
        ("repair", "100", "0", "7", "encoding × 12, spaces × 9, 1 failed"),
        ("dedup", "99", "10", "0", "near 7, exact 3"),
        ("pii", "89", "0", "0", "nothing"),
    )


def test_page_and_terminal_show_it() -> None:
    stream = io.StringIO()
    render_terminal(sample_report().model_copy(update={"data": DATA}), Console(file=stream, width=120))
    page = str(data_section(DATA))
    for text in ("100 rows in = 89 kept + 10 dropped + 1 quarantined", "near 7, exact 3", "encoding × 12"):
        assert text in stream.getvalue() and text in page
    assert "removed.jsonl" in page


def test_without_steps_nothing_is_said_of_them() -> None:
    plain = DataReport(rows_in=2, rows_kept=2, rows_quarantined=0)
    assert "dropped" not in str(data_section(plain)) and "Preparation" not in str(data_section(plain))


def test_no_row_can_be_lost() -> None:
    with pytest.raises(ValidationError, match=r"rows in \(100\)"):
        DataReport(rows_in=100, rows_kept=89, rows_dropped=9, rows_quarantined=1)
    with pytest.raises(ValidationError, match=r"`dedup`: rows in \(5\)"):
        StepReport(use="dedup", rows_in=5, rows_out=4)
