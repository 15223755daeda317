"""A scaling study from a recipe to its report: end to end with toy models, resumed, refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from uplift.cli import main as cli
from uplift.core.errors import DataError, Stopped, UsageError
from uplift.core.recipe import Budget, Recipe
from uplift.core.recipe_file import to_yaml
from uplift.core.run import Run
from uplift.core.study_report import ScalingReport
from uplift.study.scaling import Design
from uplift.testing.tiny import tiny_recipe
from uplift.verbs import scaling as verb
from uplift.verbs.scaling import scaling

SIZES, TOKENS = (30_000, 70_000, 160_000), (1_000, 2_000, 4_000)
DESIGN = Design(sizes=SIZES, tokens=TOKENS, target=Budget(flops=1e10))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def recipe(place: Path) -> Recipe:
    base = tiny_recipe(place, "text", rows=200, train={"batch_tokens": 256, "evaluate_every": 1000, "lr": 3e-3})
    tokenizer = {"use": "hf", "id": str(place / "model")}
    blank = {"use": "blank", "shape": "llama", "parameters": 70_000, "tokenizer": tokenizer}
    return Recipe.model_validate({**base.model_dump(mode="json"), "model": blank, "name": "toy"})


@pytest.fixture(scope="module")
def finished(recipe: Recipe, place: Path) -> ScalingReport:
    return scaling(recipe, place, DESIGN)


def folder_of(recipe: Recipe) -> Path:
    (found,) = Path(recipe.output_dir).glob(f"toy-scaling-{recipe.hash()}")
    return found


def test_the_ladder_is_trained_and_fitted_and_the_largest_run_held_out(finished: ScalingReport) -> None:
    assert finished.status == "finished", finished.reason
    ladder = [run for run in finished.runs if not run.search]
    assert [(run.size, run.held_out) for run in ladder][-1] == (SIZES[-1], True) and sum(run.held_out for run in ladder) == 1
    assert {(run.size, round(run.tokens, -3)) for run in ladder} == {(size, tokens) for size in SIZES for tokens in TOKENS}
    assert all(run.loss is not None and run.loss < 6.5 and run.fitted is not None and run.steps >= 4 for run in ladder)
    assert len({run.parameters for run in ladder}) == 3
    assert all(abs(run.parameters / run.size - 1) < 0.1 for run in ladder), "a tied head: nearly all weights multiply"
    assert 3 <= sum(run.search for run in finished.runs) <= 5
    assert finished.law is not None and finished.law.runs == 8
    assert finished.held_out is not None and finished.held_out.predicted.low is not None
    assert finished.cost.steps


def test_runs_of_a_few_steps_show_no_best_size(finished: ScalingReport) -> None:
    assert finished.verdict.startswith("These runs name no best use of 1e+10 FLOPs") and not finished.advice


def test_more_text_and_the_best_rate_give_a_lower_loss(finished: ScalingReport) -> None:
    losses = {(run.size, round(run.tokens, -3)): run.loss or 0.0 for run in finished.runs if not run.search}
    assert all(losses[size, 1000] > losses[size, 4000] for size in SIZES)
    tried = {run.lr: run.loss or 9.0 for run in finished.runs if run.search}
    smallest = {run.lr for run in finished.runs if not run.search and run.size == SIZES[0]}
    best = min(tried, key=lambda rate: tried[rate])
    assert len(smallest) == 1 and 3**-0.51 < smallest.pop() / best < 3**0.51


def test_the_report_can_be_read_again_and_has_a_page(finished: ScalingReport, recipe: Recipe) -> None:
    folder = folder_of(recipe)
    assert Run.open(folder).report() == finished
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 1 and "name no best use" in page
    assert not list((folder / "runs").glob("*/model"))


@pytest.mark.slow
def test_finished_runs_are_reused_also_by_a_larger_ladder(finished: ScalingReport, recipe: Recipe, place: Path) -> None:
    before = {file: os.stat(file).st_mtime_ns for file in (folder_of(recipe) / "runs").glob("*/outcomes.json")}
    again = scaling(recipe, place, DESIGN.model_copy(update={"tokens": (1_000, 2_000, 4_000, 6_000)}))
    assert before == {file: os.stat(file).st_mtime_ns for file in before}
    assert again.law is not None and again.law.runs == 11
    assert again.held_out is not None and round(again.held_out.tokens, -3) == 6000


def test_a_signal_stops_the_study_and_the_same_command_goes_on(
    finished: ScalingReport, recipe: Recipe, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = verb.run, []

    def stops(*args: object, **options: object) -> object:
        calls.append(args)
        if len(calls) == 3:
            raise Stopped("stopped", 15)
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(verb, "run", stops)
    with pytest.raises(Stopped):
        scaling(recipe, place, DESIGN)
    before = {file: os.stat(file).st_mtime_ns for file in (folder_of(recipe) / "runs").glob("*/outcomes.json")}
    report = scaling(recipe, place, DESIGN)
    assert report.law == finished.law and report.runs == finished.runs
    assert before == {file: os.stat(file).st_mtime_ns for file in before}


def test_a_run_that_fails_is_listed_and_stops_no_other(
    finished: ScalingReport, recipe: Recipe, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = verb.run

    def fails(chosen: Recipe, *args: object, **options: object) -> object:
        if chosen.name == "n70000-d2000":
            raise MemoryError("none left")
        return real(chosen, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(verb, "run", fails)
    report = scaling(recipe, place, DESIGN)
    assert report.status == "finished" and report.law is not None and report.law.runs == 7
    assert any("70.0 k parameters, 2,000 tokens (seed 0) failed: MemoryError" in one for one in report.warnings)


def test_a_budget_too_small_for_any_ladder_is_refused(recipe: Recipe, place: Path) -> None:
    with pytest.raises(UsageError, match="too small for a ladder") as caught:
        scaling(recipe, place, Design(budget=Budget(flops=1e8)))
    assert "parameters" in caught.value.why and not list(folder_of(recipe).glob("ladder-*.json"))


def test_a_ladder_for_a_budget_is_chosen_once(recipe: Recipe, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = recipe.model_copy(update={"output_dir": str(place / "budget")})
    asked = Design(budget=Budget(seconds=40.0), tune=False)
    calls: list[Recipe] = []
    monkeypatch.setattr(verb, "run", lambda chosen, *args, **options: calls.append(chosen) or _refuse())
    monkeypatch.setattr(verb.gc, "collect", lambda: 0)
    monkeypatch.setattr(verb, "measured_machine", lambda base: _Machine())
    pace = {"speed": 1.0}
    monkeypatch.setattr(verb, "run_probe", lambda sized, base_dir: _Probe(2e-10 * sized.model.parameters * pace["speed"]))
    scaling(moved, place, asked)
    first = {one.name for one in calls}
    pace["speed"] = 30.0
    calls.clear()
    scaling(moved, place, asked)
    assert {one.name for one in calls} == first and len(first) == 12
    (kept,) = folder_of(moved).glob("ladder-*.json")
    assert len(json.loads(kept.read_text())["sizes"]) == 4


class _Machine:
    gemm_flops, device = 1e9, "cpu"


class _Probe:
    def __init__(self, seconds_per_token: float) -> None:
        self.seconds_per_token = seconds_per_token


def _refuse() -> None:
    raise DataError("not now")


# -- the command -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def file(recipe: Recipe, place: Path) -> Path:
    path = place / "toy.yaml"
    path.write_text(to_yaml(recipe), encoding="utf-8")
    return path


def test_the_command_prints_the_report_as_json(finished: ScalingReport, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes, tokens = (",".join(map(str, many)) for many in (SIZES, TOKENS))
    assert cli.main(["study", "scaling", str(file), "--sizes", sizes, "--tokens", tokens, "--target", "1e10", "--json"]) == 0
    out, _ = capsys.readouterr()
    assert ScalingReport.model_validate_json(out).law == finished.law
    assert cli.main(["study", "scaling", str(file), "--sizes", "30k,70k,160k", "--tokens", "1k,2k,4k"]) == 0
    out, _ = capsys.readouterr()
    assert "held out" in out and "name no best use" in out.replace("\n", " ")


@pytest.mark.parametrize(
    ("words", "hints"),
    [
        ([], ["give a budget, or sizes and tokens"]),
        (["--budget", "long"], ["neither a time nor a number", "--budget 20m"]),
        (["--budget=-5m"], ["neither a time nor a number"]),
        (["--sizes", "30k,70k"], ["give both sizes and tokens"]),
        (["--sizes", "30k,much", "--tokens", "1k"], ["--sizes"]),
        (["--sizes", "30k,60k,90k", "--tokens", "1k,2k,4k"], ["do not show how the loss depends"]),
        (["--budget", "20m", "train.schedule.use=constant"], ["only a part of a schedule"]),
    ],
)
def test_wrong_usage_is_told(file: Path, words: list[str], hints: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "scaling", str(file), *words]) == 2
    out, err = capsys.readouterr()
    assert not out and "Traceback" not in err
    assert all(hint in err for hint in hints), err
