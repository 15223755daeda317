"""Report objects: the keys that were promised, finite numbers, a round trip through JSON, documentation that is current."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from uplift.core.report import (
    ComparisonReport,
    Confusion,
    Cost,
    Curve,
    DataReport,
    EffectReport,
    Interval,
    Report,
)
from uplift.core.report_tables import schema_tables
from uplift.core.values import Effect
from uplift.testing.reports import sample_comparison, sample_report

DOCUMENT = Path(__file__).parents[2] / "docs" / "report.md"


def test_a_run_has_the_promised_keys() -> None:
    report = json.loads(sample_report().model_dump_json())
    assert {"status", "evaluation", "cost", "effects", "data"} <= report.keys()
    assert {"value", "low", "high", "base"} <= report["evaluation"].keys()
    assert {"value", "low", "high"} == report["evaluation"]["base"].keys()
    assert {"seconds", "tokens", "peak_memory_bytes", "predicted"} <= report["cost"].keys()
    assert all({"technique", "claim", "value", "passed"} <= effect.keys() for effect in report["effects"])
    assert {"rows_in", "rows_kept", "rows_quarantined"} <= report["data"].keys()


def test_a_comparison_has_them_and_ranked_arms_tests_and_a_recommendation() -> None:
    report = json.loads(sample_comparison(failed=True).model_dump_json())
    assert {"status", "evaluation", "cost", "effects", "data", "arms", "tests", "recommendation"} <= report.keys()
    assert [arm["rank"] for arm in report["arms"]] == [1, 2, 3, 4, 5, 6, 7, None]
    assert {"arms", "difference", "low", "high", "p", "p_holm", "method"} == report["tests"][0].keys()
    assert {"arm", "text", "reasons"} == report["recommendation"].keys()


@pytest.mark.parametrize("report", [sample_report(), sample_comparison(), sample_comparison(failed=True)])
def test_json_round_trip(report: Report | ComparisonReport) -> None:
    assert type(report).model_validate_json(report.model_dump_json()) == report


def test_numbers_that_are_not_finite_become_null() -> None:
    assert Interval(value=math.inf, low=math.nan, high=1.0).model_dump() == {"value": None, "low": None, "high": 1.0}
    effect = EffectReport.of(Effect("sam", "sharpness fell", math.nan, False, "no step"))
    assert effect.value is None and not effect.passed
    assert "NaN" not in effect.model_dump_json() and "Infinity" not in effect.model_dump_json()


def test_nothing_is_changed_or_invented_later() -> None:
    report = sample_report()
    with pytest.raises(ValidationError):
        report.status = "failed"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Report.model_validate({**json.loads(report.model_dump_json()), "verdict": "great"})


def test_no_row_can_be_lost() -> None:
    with pytest.raises(ValidationError, match=r"rows in \(10\)"):
        DataReport(rows_in=10, rows_kept=8, rows_quarantined=1)


def test_inconsistent_parts_are_refused() -> None:
    with pytest.raises(ValidationError, match="wrong order"):
        Interval(value=1, low=2, high=1)
    with pytest.raises(ValidationError, match="one row and one column per label"):
        Confusion(labels=("a", "b"), counts=((1, 2),))
    with pytest.raises(ValidationError, match="one value per step"):
        Curve(name="loss", steps=(1, 2), values=(1.0,))
    comparison = json.loads(sample_comparison().model_dump_json())
    with pytest.raises(ValidationError, match="not among the arms: nobody"):
        ComparisonReport.model_validate({**comparison, "baseline": "nobody"})
    with pytest.raises(ValidationError, match="order of rank"):
        ComparisonReport.model_validate({**comparison, "arms": comparison["arms"][::-1]})


def test_long_curves_are_thinned_by_means_and_gaps_stay_visible() -> None:
    points = [(step, float(step)) for step in range(1, 1001)]
    points[500] = (501, math.nan)
    curve = Curve.of("loss", points, most=100)
    assert len(curve.steps) == 100 and curve.steps[-1] == 1000
    assert curve.values[0] == pytest.approx(5.5)
    assert curve.values.count(None) == 1
    assert Curve.of("loss", points[:50]).values == tuple(float(step) for step in range(1, 51))
    assert Curve.of("loss", []).steps == ()


def test_proven_needs_every_technique() -> None:
    report = Report(name="x", status="finished", cost=Cost(seconds=0, tokens=0, peak_memory_bytes=0))
    effects = tuple(EffectReport(technique="t", claim="c", value=1, passed=passed) for passed in (True, False))
    assert report.proven
    assert not report.model_copy(update={"effects": effects}).proven


def test_the_documented_keys_are_current() -> None:
    """Run with ``UPLIFT_UPDATE_DOCS=1`` to write the tables again."""
    head, rest = DOCUMENT.read_text(encoding="utf-8").split("<!-- keys -->\n")
    tail = rest.partition("<!-- /keys -->")[2]
    wanted = f"{head}<!-- keys -->\n{schema_tables()}<!-- /keys -->{tail}"
    if os.environ.get("UPLIFT_UPDATE_DOCS"):
        DOCUMENT.write_text(wanted, encoding="utf-8")
    assert DOCUMENT.read_text(encoding="utf-8") == wanted
    assert "| `rows_quarantined` | integer |" in wanted
