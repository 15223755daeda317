"""What the command line prints of results; the tables of whole reports are tested with `study/report_terminal`."""

from __future__ import annotations

import json

import pytest

from uplift.cli import printing
from uplift.cli.results import show_evaluation, show_report
from uplift.core.report import Cost, DataReport, Difference, EffectReport, Evaluation, Interval, Report

EVALUATION = Evaluation(
    value=0.8,
    low=0.75,
    high=0.85,
    items=99,
    metrics={"accuracy": Interval(value=0.8, low=0.75, high=0.85)},
    base_metrics={"accuracy": Interval(value=0.5)},
    difference=Difference(value=0.3, low=0.2, high=0.4),
)


def test_numbers() -> None:
    assert [printing.number(each) for each in (None, 0.81234, 12345.6)] == ["-", "0.8123", "12,346"]
    assert printing.number(3, "s") == "3 s"


def test_an_evaluation_shows_intervals_and_the_gain(capsys: pytest.CaptureFixture[str]) -> None:
    show_evaluation(EVALUATION)
    text = capsys.readouterr().out
    assert "0.75 to 0.85" in text and "0.5" in text and "99 test rows" in text and "0.2 to 0.4" in text


def test_a_run_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    effect = EffectReport(technique="ema", claim="average moved", value=0.0, passed=False)
    data = DataReport(rows_in=10, rows_kept=9, rows_quarantined=1)
    cost = Cost(seconds=12.5, tokens=40_000, peak_memory_bytes=3 * 2**30)
    show_report(Report(name="reviews", status="finished", evaluation=EVALUATION, cost=cost, effects=(effect,), data=data))
    text = capsys.readouterr().out
    assert "reviews" in text and "ema" in text


def test_only_the_first_process_speaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    printing.print_json({"a": 1})
    printing.output().print("x")
    printing.progress().print("x")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("RANK", "0")
    printing.print_json({"a": 1})
    assert json.loads(capsys.readouterr().out) == {"a": 1}
