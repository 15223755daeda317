"""``evaluate.robustness`` in runs and ``uplift eval``: what is attacked, what is remembered, what is shown, what is refused."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from uplift.cli.results import show_evaluation
from uplift.core.errors import RecipeError, RecipeErrors
from uplift.core.legality import clashes_of
from uplift.core.recipe import Recipe
from uplift.core.recipe_errors import dotted, undotted
from uplift.core.recipe_file import load_recipe, to_yaml
from uplift.core.report import Report, Robustness
from uplift.core.run import Run
from uplift.evaluate import robustness as attacks
from uplift.learn.assemble import assemble
from uplift.learn.parallel import Parallel
from uplift.study.plan import evaluated_rows
from uplift.study.report_html import render_html
from uplift.study.report_terminal import render_terminal
from uplift.study.robustness_table import robustness_table
from uplift.testing.reports import sample_report
from uplift.testing.tiny import tiny_recipe
from uplift.verbs.evaluate import evaluate
from uplift.verbs.run import run

CHOSEN = {"attacks": ["drop", "embedding"], "rows": 9, "queries": 6, "similarity": 0.4, "eps": [0.1], "steps": 2}


def robust_recipe(folder: Path, **changes: object) -> Recipe:
    options = {**CHOSEN, **dict(changes.pop("robustness", {}))}  # type: ignore[call-overload]
    head = {"head": changes.pop("head", "classifier")}
    return tiny_recipe(folder, rows=160, task_options=head, evaluate={"robustness": options}, **changes)


# -- runs --------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Report, Path]:
    folder = tmp_path_factory.mktemp("run")
    recipe = robust_recipe(folder)
    return recipe, run(recipe, folder), folder


def found_in(report: Report) -> Robustness:
    assert report.evaluation is not None and report.evaluation.robustness is not None
    return report.evaluation.robustness


def test_a_run_attacks_base_and_result_on_the_same_rows(finished: tuple[Recipe, Report, Path]) -> None:
    recipe, report, _ = finished
    found = found_in(report)
    assert found.rows == 9 and found.queries == 6 and found.similarity == 0.4
    assert [(each.attack, each.eps) for each in found.attacks] == [("drop", None), ("noise", 0.1), ("pgd", 0.1)]
    assert found.base_clean is not None and all(each.base is not None for each in found.attacks)
    for each in found.attacks:
        assert (each.result.robust.value or 0) <= (found.clean.value or 0)
        assert each.base is not None and (each.base.robust.value or 0) <= (found.base_clean.value or 0)
        assert each.result.queries is None or each.result.queries <= 6
    folder = Path(recipe.output_dir) / f"{recipe.name}-{recipe.hash()}"
    assert Run.open(folder).report() == report, "the file holds what the run returned"
    assert "Under attack" in (folder / "report.html").read_text(encoding="utf-8")


def test_eval_finds_the_same(finished: tuple[Recipe, Report, Path], capsys: pytest.CaptureFixture[str]) -> None:
    recipe, report, folder = finished
    evaluation = evaluate(str(Path(recipe.output_dir) / f"{recipe.name}-{recipe.hash()}"), recipe, folder)
    again, first = evaluation.robustness, found_in(report)
    assert again is not None and again.base_clean is None and again.clean == first.clean
    assert [each.result for each in again.attacks] == [each.result for each in first.attacks]
    show_evaluation(evaluation)
    assert "Under attack" in capsys.readouterr().out


def test_the_base_is_attacked_once(finished: tuple[Recipe, Report, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, report, folder = finished
    measured: list[int] = []
    inside = attacks.Assault.__post_init__
    monkeypatch.setattr(attacks.Assault, "__post_init__", lambda self: (measured.append(1), inside(self))[1])
    again = found_in(run(recipe.model_copy(update={"name": "again"}), folder))
    assert len(measured) == 1, "only the result"
    assert again.base_clean == found_in(report).base_clean and again.clean == found_in(report).clean
    other = robust_recipe(folder, robustness={"queries": 7}, name="other")
    run(other, folder)
    assert len(measured) == 3, "another question is asked anew"


@pytest.mark.parametrize("head", ["classifier", "words"])
def test_texts_of_another_model_are_shown(tmp_path: Path, head: str) -> None:
    plain = tiny_recipe(tmp_path, rows=160, task_options={"head": head}, train={"steps": 20, "lr": 5e-3})
    run(plain, tmp_path)
    trained = tmp_path / "runs" / f"tiny-{plain.hash()}"
    recipe = robust_recipe(tmp_path, head=head, robustness={"transfer_from": str(trained)}, name="attacked")
    report = run(recipe, tmp_path)
    texts = found_in(report).attacks[0]
    assert texts.attack == "drop" and texts.result.transfer is not None and texts.base is not None
    assert texts.base.transfer is not None and not any("untrained" in warning for warning in report.warnings)
    own = robust_recipe(tmp_path, head=head, robustness={"transfer_from": str(tmp_path / "model")}, name="untrained")
    untrained = any("untrained" in warning for warning in run(own, tmp_path).warnings)
    assert untrained == (head == "classifier"), "a head drawn at random is said"


def test_a_model_withstands_none_of_its_own_texts(tmp_path: Path) -> None:
    """Nothing is trained: base, result and the other model are one."""
    model = {"transfer_from": str(tmp_path / "model"), "similarity": 0.0, "queries": 30}
    found = found_in(run(robust_recipe(tmp_path, head="words", robustness=model, train={"steps": 0}), tmp_path))
    assert found.base_clean == found.clean and all(each.base == each.result for each in found.attacks)
    drop = found.attacks[0].result
    assert drop.transfer is not None and (drop.transfer_rows == 0 or drop.transfer.value == 0)


# -- recipes -----------------------------------------------------------------------------------------------------------
HEAD = "model: m\ndata: {train: a.csv, split: {test: 0.1}}\n"


def problems(folder: Path, text: str) -> str:
    file = folder / "recipe.yaml"
    file.write_text(HEAD + text, encoding="utf-8")
    with pytest.raises(RecipeErrors) as caught:
        load_recipe(file)
    return str(caught.value)


def test_attacks_without_labels_are_refused(tmp_path: Path) -> None:
    text = problems(tmp_path, "evaluate:\n  robustness: {}\n")
    assert "recipe.yaml:4" in text and "(evaluate.robustness)" in text and "attacks need a classification" in text
    assert "use: chat" in text and "task: {use: classify" in text
    recipe = tiny_recipe(tmp_path, "text", evaluate={"robustness": {}})
    with pytest.raises(RecipeError, match="classification"):
        assemble(recipe, tmp_path, Parallel(torch.device("cpu")))


def test_attacks_without_test_rows_are_refused() -> None:
    content = {"model": "m", "data": {"train": "a.csv"}, "task": {"use": "classify"}}
    assert clashes_of(Recipe.model_validate(content)) == []
    (clash,) = clashes_of(Recipe.model_validate({**content, "evaluate": {"robustness": {}}}))
    assert clash.key == "evaluate.robustness" and "data.split.test" in clash.fix
    with_rows = {**content, "data": {"train": "a.csv", "test": "b.csv"}, "evaluate": {"robustness": {}}}
    assert clashes_of(Recipe.model_validate(with_rows)) == []


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("{attack: [typo]}", "did you mean `attacks`"),
        ("{attacks: [typos]}", "`typo`, `swap`, `drop`, `synonym`, `gradient` or `embedding`"),
        ("{attacks: [typo, typo]}", "stands twice"),
        ("{attacks: []}", "evaluate.robustness.attacks"),
        ("{queries: 0}", ">= 1"),
        ("{similarity: 1.5}", "<= 1"),
        ("{eps: [-0.1]}", ">= 0"),
        ("{eps: 0.1}", "a list"),
        ("{steps: 0}", ">= 1"),
        ("{rows: ten}", "a whole number"),
        ("{attacks: [embedding], transfer_from: m}", "add another attack"),
        ("{transfer_from: {use: hff, id: m}}", "`hf`"),
    ],
)
def test_wrong_options_are_explained(tmp_path: Path, section: str, words: str) -> None:
    text = problems(tmp_path, f"task: {{use: classify}}\nevaluate: {{robustness: {section}}}\n")
    assert words in text and "recipe.yaml:4" in text


def test_a_recipe_with_attacks_survives_its_yaml(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    section = (
        "task: {use: classify}\nevaluate: {robustness: {attacks: [typo, embedding], eps: [0.01], transfer_from: some/model}}\n"
    )
    file.write_text(HEAD + section, encoding="utf-8")
    recipe = load_recipe(file)
    assert recipe.evaluate.robustness is not None and recipe.evaluate.robustness.transfer_from is not None
    file.write_text(to_yaml(recipe), encoding="utf-8")
    assert load_recipe(file) == recipe
    assert recipe.hash() != Recipe.model_validate({**recipe.model_dump(), "evaluate": {}}).hash()


def test_keys_are_read_back() -> None:
    for path in (("techniques", 3), ("evaluate", "robustness"), ("techniques", 0, "rank")):
        assert undotted(dotted(path)) == path


def test_the_plan_counts_attacks(tmp_path: Path) -> None:
    class Counted:
        test_rows = 50

    plain, robust = tiny_recipe(tmp_path), robust_recipe(tmp_path)
    assert evaluated_rows(plain, Counted()) == 50  # type: ignore[arg-type]
    # 9 rows: 6 texts, and one size of 1 + 2 pushes there and back
    assert evaluated_rows(robust, Counted()) == 50 + 9 * (6 + 1 * 3 * 2)  # type: ignore[arg-type]


def test_the_recipe_that_shows_it_is_read() -> None:
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "robustness.yaml")
    assert recipe.evaluate.robustness is not None and len(recipe.evaluate.robustness.attacks) > 1


# -- what is shown -----------------------------------------------------------------------------------------------------
def test_the_table_and_the_examples() -> None:
    table = robustness_table(found_in(sample_report()))
    assert table.head == (*("attack", "base", "this model", "95 % interval", "broken", "queries", "words changed", "transfer"),)
    assert table.rows[0][:3] == ("none", "63.0 %", "87.0 %") and all(len(row) == len(table.head) for row in table.rows)
    assert table.rows[-1][0] == "pgd, eps 0.05" and table.rows[-1][-1] == table.rows[-1][-2] == "–"
    assert [name for name, _ in table.examples] == ["typo", "drop", "gradient"]
    alone = found_in(sample_report()).model_copy(update={"base_clean": None, "attacks": found_in(sample_report()).attacks[3:]})
    assert robustness_table(alone).head == ("attack", "this model", "95 % interval", "broken", "queries", "words changed")
    assert robustness_table(alone).examples == ()


@pytest.mark.parametrize("width", [80, 120])
def test_terminal_and_page_show_the_same(width: int) -> None:
    stream = io.StringIO()
    render_terminal(sample_report(), Console(file=stream, width=width))
    page = render_html(sample_report())
    for words in ("Under attack", "enhaging", "52.0 %", "pgd, eps 0.05"):
        assert words in stream.getvalue() and words in page
    assert all(len(line) <= width for line in stream.getvalue().splitlines())
