"""`export:` in a recipe: made once, told in the report, refused without losing the run."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from uplift.core.errors import RecipeError
from uplift.core.export_section import TYPES, Export
from uplift.core.recipe import Recipe, Stages
from uplift.core.report import Report
from uplift.core.run import Run
from uplift.core.study_report import StagesReport
from uplift.serve.export import gate
from uplift.serve.export.cost import Cost
from uplift.serve.export.formats import FORMS, Limits
from uplift.study.exports import exports_table
from uplift.testing.tiny import tiny_recipe
from uplift.verbs import export as verb
from uplift.verbs.export import RefusedExport
from uplift.verbs.run import run
from uplift.verbs.stages import run_stages

TORCH = Export(to="torch", rows=6)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    place = tmp_path_factory.mktemp("exports")
    return tiny_recipe(place, task="classify", train={"steps": 2}).model_copy(update={"export": [TORCH]})


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed and memory are not measured: that takes two processes each time."""
    monkeypatch.setattr(gate, "cost_of", lambda *_, **__: Cost(load=0.1, tokens_per_second=100.0, memory=1))


@pytest.fixture(scope="module")
def finished(recipe: Recipe) -> Report:
    return run(recipe, Path())


def folder_of(recipe: Recipe) -> Path:
    return Path(recipe.output_dir) / f"{recipe.name}-{recipe.hash()}"


def test_the_report_tells_of_the_file(recipe: Recipe, finished: Report) -> None:
    (found,) = finished.exports
    assert found.name == "torch-f32" and found.agreement == 1.0 and found.problems == ()
    assert found.metric == "macro_f1" and found.items == 6 and found.score == found.original
    assert (folder_of(recipe) / found.file).is_file() and found.size == (folder_of(recipe) / found.file).stat().st_size
    assert found.tokens_per_second and found.original_tokens_per_second
    assert Run.open(folder_of(recipe)).report() == finished
    assert "torch-f32" in (folder_of(recipe) / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_finished_run_gets_only_the_missing_file(recipe: Recipe, finished: Report, cheap: None) -> None:
    before = (folder_of(recipe) / finished.exports[0].file).stat().st_mtime_ns
    assert run(recipe, Path()) == finished
    more = recipe.model_copy(update={"export": [TORCH, Export(to="onnx", rows=6)]})
    assert more.hash() == recipe.hash(), "a file more makes no other model"
    report = run(more, Path())
    assert [each.name for each in report.exports] == ["torch-f32", "onnx-f32"] and report.cost == finished.cost
    assert (folder_of(recipe) / finished.exports[0].file).stat().st_mtime_ns == before


def test_a_refused_file_loses_nothing(
    recipe: Recipe, finished: Report, cheap: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb, "_limits", lambda *_: Limits(-1.0, -1.0))
    other = recipe.model_copy(update={"output_dir": str(tmp_path / "runs"), "evaluate": recipe.evaluate})
    with pytest.raises(RefusedExport, match="differs from the original"):
        run(other, Path())
    report = Run.open(folder_of(other)).report()
    assert isinstance(report, Report) and report.status == "finished"
    (found,) = report.exports
    assert found.file == "" and found.problems and not (folder_of(other) / "exports" / "torch-f32").exists()
    assert exports_table([("", found)]).rows[0][0] == "torch-f32 (refused)"


def test_what_cannot_work_is_said_before_training(recipe: Recipe) -> None:
    without = recipe.model_copy(update={"data": recipe.data.model_copy(update={"test": None})})
    without = without.model_copy(
        update={"data": without.data.model_copy(update={"split": without.data.split.model_copy(update={"test": 0.0})})}
    )
    with pytest.raises(RecipeError, match="there are none"):
        run(without, Path())


def test_types_are_those_of_the_formats() -> None:
    assert {to: tuple(form.types) for to, form in FORMS.items()} == dict(TYPES)
    with pytest.raises(ValidationError, match="gguf files have no type `q4_k`: did you mean `q4_k_m`"):
        Export(to="gguf", type="q4_k")


def test_one_file_is_asked_for_once(recipe: Recipe) -> None:
    with pytest.raises(ValidationError, match="`torch-f32` is asked for twice"):
        Recipe.model_validate(recipe.model_dump() | {"export": [TORCH, TORCH]})


def test_stages_show_the_files_of_all(recipe: Recipe, finished: Report, cheap: None, tmp_path: Path) -> None:
    chain = Stages(name="chain", stages=[recipe.model_copy(update={"name": "only"})], output_dir=str(tmp_path / "chains"))
    report = run_stages(chain, Path())
    (found,) = report.stages[0].exports
    assert found.agreement == 1.0 and exports_table([("only", found)]).rows[0][0] == "only: torch-f32"
    page = (tmp_path / "chains" / f"chain-{chain.hash()}" / "report.html").read_text(encoding="utf-8")
    assert "only: torch-f32" in page


def test_a_refused_file_does_not_stop_the_stages_after_it(
    recipe: Recipe, finished: Report, cheap: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb, "_limits", lambda *_: Limits(-1.0, -1.0))
    second = recipe.model_copy(update={"name": "second", "export": []})
    stages = [recipe.model_copy(update={"name": "first"}), second]
    chain = Stages(name="chain", stages=stages, output_dir=str(tmp_path / "chains"))
    with pytest.raises(RefusedExport, match="differs from the original"):
        run_stages(chain, Path())
    report = Run.open(tmp_path / "chains" / f"chain-{chain.hash()}").report()
    assert isinstance(report, StagesReport) and [stage.name for stage in report.stages] == ["first", "second"]
    assert report.stages[0].exports[0].problems and not report.stages[1].exports
