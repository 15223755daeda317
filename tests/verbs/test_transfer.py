"""A transfer study from a recipe to its report: end to end, resumed, refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from uplift.cli import main as cli
from uplift.core.errors import DataError, Stopped
from uplift.core.recipe import Recipe
from uplift.core.recipe_file import to_yaml
from uplift.core.run import Run
from uplift.core.study_report import TransferReport
from uplift.study.transfer import Design
from uplift.testing.tiny import tiny_recipe
from uplift.verbs import transfer as verb
from uplift.verbs.transfer import transfer

DESIGN = Design(rows=(8, 4), seeds=1, arms=("transfer", "scratch"), min_steps=2)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def recipe(place: Path) -> Recipe:
    changes = {"evaluate": {"limit": 10}, "train": {"steps": None, "epochs": 1.0, "batch_tokens": 2048, "evaluate_every": None}}
    return tiny_recipe(place, rows=60, data={"split": {"validation": 0.0}}, **changes)


@pytest.fixture(scope="module")
def finished(recipe: Recipe, place: Path) -> TransferReport:
    return transfer(recipe, place, DESIGN)


def folder_of(recipe: Recipe) -> Path:
    (found,) = Path(recipe.output_dir).glob(f"tiny-transfer-{recipe.hash()}")
    return found


def test_the_report_has_a_curve_for_each_arm(finished: TransferReport) -> None:
    assert finished.status == "finished" and finished.rows == (4, 8) and finished.seeds == (0,) and finished.items == 6
    assert [arm.name for arm in finished.arms] == ["transfer", "scratch"]
    for arm in finished.arms:
        assert [point.rows for point in arm.points] == [4, 8] and arm.area is not None and not arm.failures
        assert all(point.steps == 2 and point.score is not None and point.last_loss is not None for point in arm.points)
    assert [one.rows for one in finished.labels_saved] == [4, 8] and finished.verdict
    transfer_arm = finished.arm("transfer")
    assert transfer_arm is not None and transfer_arm.gain is not None
    assert any("One seed" in warning for warning in finished.warnings)
    assert {effect.technique for effect in finished.effects} == {"subset", "reinitialize"}
    assert all(effect.passed for effect in finished.effects)


def test_every_run_took_the_rows_and_the_weights_it_should(finished: TransferReport, recipe: Recipe) -> None:
    found = {}
    for file in (folder_of(recipe) / "runs").glob("*/report.json"):
        report = json.loads(file.read_text())
        found[report["name"]] = [one["use"] for one in report["recipe"]["techniques"]]
        assert report["evaluation"]["base"] is None and not (file.parent / "model").exists()
    assert found == {
        "transfer-4": ["subset"],
        "transfer-8": ["subset"],
        "scratch-4": ["subset", "reinitialize"],
        "scratch-8": ["subset", "reinitialize"],
    }


def test_the_report_can_be_read_again_and_has_a_page(finished: TransferReport, recipe: Recipe) -> None:
    folder = folder_of(recipe)
    assert Run.open(folder).report() == finished
    assert TransferReport.model_validate_json(finished.model_dump_json()) == finished
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 1 and "Labels saved" in page and "Trained far enough?" in page


@pytest.mark.slow
def test_finished_runs_are_reused_also_by_a_larger_study(finished: TransferReport, recipe: Recipe, place: Path) -> None:
    outcomes = {file: os.stat(file).st_mtime_ns for file in (folder_of(recipe) / "runs").glob("*/outcomes.json")}
    assert len(outcomes) == 4
    larger = DESIGN.model_copy(update={"arms": ("transfer", "scratch", "shuffled"), "rows": (8,), "blocks": True})
    report = transfer(recipe, place, larger)
    assert outcomes == {file: os.stat(file).st_mtime_ns for file in outcomes}
    assert [block.block for block in report.blocks] == [0, 1] and report.placebo is not None
    again = transfer(recipe, place, DESIGN)
    assert [arm.points for arm in again.arms] == [arm.points for arm in finished.arms]
    assert again.hash == finished.hash != report.hash


def test_a_run_that_fails_is_listed_and_stops_no_other(
    finished: TransferReport, recipe: Recipe, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = verb.run

    def fails_at_scratch(job: Recipe, *arguments: object, **options: object) -> object:
        if job.name == "scratch-8":
            raise RuntimeError("no memory\nand more")
        return original(job, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(verb, "run", fails_at_scratch)
    report = transfer(recipe, place, DESIGN)
    scratch = report.arm("scratch")
    assert scratch is not None and scratch.failures == ("RuntimeError: no memory",) and scratch.area is None
    assert report.status == "finished" and not report.labels_saved
    assert any("`scratch` with 8 rows (seed 0) failed" in warning for warning in report.warnings)

    def stopped(*arguments: object, **options: object) -> None:
        raise Stopped("stopped by SIGTERM", 15)

    monkeypatch.setattr(verb, "run", stopped)
    with pytest.raises(Stopped):
        transfer(recipe, place, DESIGN)


def test_a_study_needs_rows_to_measure_on(place: Path) -> None:
    bare = tiny_recipe(place, rows=60, data={"split": {"validation": 0.0, "test": 0.0}})
    with pytest.raises(DataError, match="nothing to measure on"):
        transfer(bare, place, DESIGN)


# -- command line ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def file(recipe: Recipe, place: Path) -> Path:
    path = place / "recipe.yaml"
    path.write_text(to_yaml(recipe))
    return path


ARGUMENTS = ["--rows", "4,8", "--seeds", "1", "--arms", "transfer,scratch", "--min-steps", "2"]


def test_the_command_prints_tables_or_json(finished: TransferReport, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "transfer", str(file), *ARGUMENTS]) == 0
    out = capsys.readouterr().out
    assert "Score by training rows" in out and "Labels saved" in out and finished.verdict[:30] in out
    assert cli.main(["study", "transfer", str(file), *ARGUMENTS, "--json"]) == 0
    report = TransferReport.model_validate_json(capsys.readouterr().out)
    assert [arm.points for arm in report.arms] == [arm.points for arm in finished.arms]


@pytest.mark.parametrize(
    ("words", "code", "hints"),
    [
        (["--arms", "transfer,scrach"], 2, ["no arm `scrach`", "did you mean `scratch`?"]),
        (["--rows", "8,100000"], 65, ["100,000 training rows are asked for, and the data has 5", "ask for at most 5"]),
        (["--rows", "1,8"], 65, ["1 rows cannot show 2 labels"]),
        (["--rows", "8,many"], 2, ["no list of numbers", "--rows 8,32,128"]),
        (["--rows", ""], 2, ["--rows"]),
        (["--rows", "0,8"], 2, ["--rows", "greater than or equal to 1"]),
        (["--seeds", "0"], 2, ["--seeds"]),
        (["train.steps=0"], 2, ["trains nothing"]),
        (["techniques=[{use: subset, rows: 8}]"], 2, ["already uses `subset`"]),
    ],
)
def test_wrong_usage_is_told(
    file: Path, words: list[str], code: int, hints: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["study", "transfer", str(file), *words]) == code
    out, err = capsys.readouterr()
    assert not out and "Traceback" not in err
    assert all(hint in err for hint in hints), err


def test_study_alone_shows_its_studies_and_an_unknown_one_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study"]) == 0
    assert "transfer" in capsys.readouterr().out
    assert cli.main(["study", "transfr", "x"]) == 2
    assert "transfer" in capsys.readouterr().err
