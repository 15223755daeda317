"""The terminal report: the verdict, whole numbers at any width, nothing in the data that steers the terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from uplift.core.report import ComparisonReport, Report
from uplift.study import wording
from uplift.study.report_terminal import render_terminal
from uplift.testing.reports import sample_comparison, sample_report


def shown(report: Report | ComparisonReport, width: int = 130, colour: bool = False) -> str:
    stream = io.StringIO()
    render_terminal(
        report, Console(file=stream, width=width, force_terminal=colour, color_system="standard" if colour else None)
    )
    return stream.getvalue()


def test_a_comparison() -> None:
    lines = shown(sample_comparison(failed=True)).splitlines()
    assert lines[1].startswith("Take lora: accuracy 86.1 %")
    ranking = next(line for line in lines if line.lstrip().startswith("2   lora "))
    for words in ("86.1 %", "●", "84.0 to 88.1", "+22.7", "114 s", "921.6 k", "4.2 MB"):
        assert words in ranking, ranking
    joined = "\n".join(lines)
    for words in ("failed prefix: loss was not finite", "blind guessing 50.0 %: at chance", "no difference shown", "proven"):
        assert words in joined, words
    assert "10,662 rows in = 10,649 kept + 13 quarantined" in joined
    assert "again: uplift compare recipes/reviews-bakeoff.yaml" in joined


def test_a_run() -> None:
    text = shown(sample_report())
    for words in (
        "23.4 points better than the base",
        "63.4 %",
        "macro F1",
        "label_smoothing",
        "85 s → 91 s",
        "damaged_checkpoint",
    ):
        assert words in text, words


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_no_number_is_cut_at_usual_widths(width: int) -> None:
    text = shown(sample_comparison(failed=True), width) + shown(sample_report(), width)
    assert "…" not in text
    assert [line.split()[:2] for line in text.splitlines() if "921.6 k" in line or "4.2 MB" in line]
    assert all(len(line) <= width for line in text.splitlines())
    for words in ("1.5 GB → 1.4 GB", "125.8 k → 121.0 k", "lora-robust", "< 0.001", "4.2 MB"):
        assert words in text, words


def test_text_from_data_neither_steers_the_terminal_nor_is_read_as_markup() -> None:
    report = sample_report().model_copy(
        update={"name": "[red]x[/red]\x1b[2J\x9b2J\u202e", "warnings": ("[bold]\x1b]0;title\x07",)}
    )
    text = shown(report)
    assert "\x1b" not in text and "\x9b" not in text and "\u202e" not in text and "\x07" not in text
    assert "[red]x[/red]" in text and "[bold]" in text
    assert "\x1b[2J" not in shown(report, colour=True)


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "–"), (0.0, "0 s"), (0.61, "0.6 s"), (91.2, "91 s"), (600, "10 min"), (12_000, "3 h 20 min")],
)
def test_times(value: float | None, words: str) -> None:
    assert wording.show_seconds(value) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "–"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (4_194_304, "4.2 MB"),
        (999_600, "1.0 MB"),
        (5 * 10**12, "5.0 TB"),
    ],
)
def test_sizes(value: int | None, words: str) -> None:
    assert wording.show_bytes(value) == words


@pytest.mark.parametrize(
    ("value", "words"), [(None, "–"), (1154, "1,154"), (921_600, "921.6 k"), (999_990, "1.0 M"), (22_713_986, "22.7 M")]
)
def test_counts(value: float | None, words: str) -> None:
    assert wording.show_count(value) == words


def test_scores_p_values_and_ratios() -> None:
    assert wording.show_score("accuracy", 0.8614) == "86.1 %"
    assert wording.show_score("accuracy", -0.021, signed=True) == "−2.1 points"
    assert wording.show_score("perplexity", 12.3456) == "12.346"
    assert wording.show_score("validation_loss", None) == "–"
    assert [wording.show_p(p) for p in (None, 1e-6, 0.0213, 0.5)] == ["–", "< 0.001", "0.021", "0.50"]
    assert wording.show_ratio(107, 100) == "1.07 ×" and wording.show_ratio(1, 0) == "–"
    assert wording.show_number(3.0) == "3" and wording.show_number(0.18349) == "0.1835"
    assert wording.show_metric_name("macro_f1") == "macro F1"
