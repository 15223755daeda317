"""A comparison from a recipe to its report: resumable, robust to a broken arm, the same test rows for all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from uplift.core.recipe import Comparison
from uplift.core.report import ComparisonReport
from uplift.core.run import Run
from uplift.evaluate.outcomes import Outcomes
from uplift.testing.tiny import tiny_encoder, tiny_recipe
from uplift.verbs import compare as verb
from uplift.verbs.compare import compare


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    tiny_encoder(folder / "encoder")
    return folder


@pytest.fixture(scope="module")
def comparison(place: Path) -> Comparison:
    base = tiny_recipe(place, rows=240, evaluate={"base": False, "limit": 20})
    arms = [
        {"use": "tfidf"},
        {"name": "zero-shot", "change": {"train": {"steps": 0}}},
        {"name": "lora", "change": {"techniques": [{"use": "lora"}], "train": {"steps": 4, "lr": 1e-2}}},
        {
            "name": "encoder",
            "change": {
                "model": {"use": "hf", "id": str(place / "encoder")},
                "task": {"head": "classifier"},
                "train": {"steps": 60, "lr": 1e-2},
            },
        },
        {"name": "broken", "change": {"model": {"use": "hf", "id": str(place / "nothing")}}},
    ]
    content = {"name": "tiny", "base": base, "arms": arms, "seeds": [0, 1], "placebo": True, "output_dir": str(place / "runs")}
    return Comparison.model_validate(content)


@pytest.fixture(scope="module")
def finished(comparison: Comparison, place: Path) -> ComparisonReport:
    return compare(comparison, place)


def test_report_ranks_tests_and_recommends(finished: ComparisonReport) -> None:
    assert finished.status == "finished" and finished.metric == "accuracy" and finished.items == 20
    ranks = {arm.name: arm.rank for arm in finished.arms}
    assert ranks["broken"] is None and sorted(rank for rank in ranks.values() if rank) == [1, 2, 3, 4]
    assert finished.arms[0].name in ("tfidf", "encoder"), "only these two can learn the words in the time given"
    assert finished.recommendation.arm == "tfidf" and finished.evaluation is not None
    assert finished.baseline == "zero-shot"
    assert {name for test in finished.tests for name in test.arms} == {"tfidf", "zero-shot", "lora", "encoder"}
    assert all(test.p_holm is not None and test.p is not None and test.p_holm >= test.p for test in finished.tests)


def test_arms_hold_seeds_costs_effects_and_why_they_failed(finished: ComparisonReport) -> None:
    arms = {arm.name: arm for arm in finished.arms}
    assert [score.seed for score in arms["lora"].seeds] == [0, 1] and arms["lora"].kind == "trained"
    assert arms["lora"].effects[0].technique == "lora" and arms["lora"].effects[0].passed
    assert arms["zero-shot"].kind == "prompted" and arms["tfidf"].kind == "baseline"
    assert arms["encoder"].cost is not None and arms["encoder"].cost.tokens > 0 and (arms["encoder"].cost.seconds or 0) > 0
    assert arms["broken"].status == "failed" and "nothing" in arms["broken"].reason
    assert any("broken" in warning for warning in finished.warnings)


def test_placebo_learns_nothing(finished: ComparisonReport) -> None:
    assert finished.placebo is not None and finished.placebo.arm == "encoder"
    assert finished.placebo.score.value is not None and finished.placebo.score.value < 0.8


def test_all_arms_saw_the_same_rows(finished: ComparisonReport, place: Path) -> None:
    files = list((place / "runs").glob("tiny-*/arms/*/outcomes.json"))
    found = [Outcomes.from_json(json.loads(file.read_text())) for file in files]
    assert len(files) == 7, "one zero-shot run, two of lora, encoder and placebo each"
    assert len({outcomes.fingerprint for outcomes in found}) == 1


def test_report_files_can_be_read_again(finished: ComparisonReport, place: Path) -> None:
    (folder,) = (place / "runs").glob("tiny-*")
    assert Run.open(folder).report() == finished
    assert (folder / "report.html").stat().st_size > 1000


def test_finished_runs_are_not_repeated(finished: ComparisonReport, comparison: Comparison, place: Path) -> None:
    (folder,) = (place / "runs").glob("tiny-*/")
    stamps = {file: os.stat(file).st_mtime_ns for file in folder.glob("arms/*/outcomes.json")}
    again = compare(comparison, place)
    assert stamps == {file: os.stat(file).st_mtime_ns for file in folder.glob("arms/*/outcomes.json")}
    assert [(arm.name, arm.score) for arm in again.arms] == [(arm.name, arm.score) for arm in finished.arms]


def test_any_crash_of_one_arm_is_listed(comparison: Comparison, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*arguments: object, **options: object) -> None:
        raise RuntimeError("out of memory\nand more lines")

    monkeypatch.setattr(verb, "run", crash)
    other = comparison.model_copy(update={"name": "crashed", "placebo": False, "arms": comparison.arms[:2]})
    report = compare(other, place)
    failed = next(arm for arm in report.arms if arm.name == "zero-shot")
    assert failed.status == "failed" and failed.reason == "RuntimeError: out of memory"
    assert report.recommendation.arm == "tfidf"


def test_tfidf_needs_labels(place: Path) -> None:
    base = tiny_recipe(place, "text", rows=60)
    report = compare(
        Comparison.model_validate(
            {"name": "text", "base": base, "arms": [{"use": "tfidf"}], "output_dir": str(place / "runs")}
        ),
        place,
    )
    assert report.status == "failed" and "not classification" in report.arms[0].reason and report.recommendation.arm is None
