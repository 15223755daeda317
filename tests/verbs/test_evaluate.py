"""``uplift eval``: any model on a recipe's test rows, with the same numbers as the run that made it."""

from __future__ import annotations

from pathlib import Path

import pytest

from uplift.core.errors import ModelError
from uplift.testing.tiny import tiny_recipe
from uplift.verbs.evaluate import evaluate
from uplift.verbs.run import run


def test_a_run_is_measured_again_with_the_same_result(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, rows=160, train={"steps": 4})
    report = run(recipe, tmp_path)
    assert report.evaluation is not None
    again = evaluate(str(tmp_path / "runs" / f"tiny-{recipe.hash()}"), recipe, tmp_path)
    assert again.items == report.evaluation.items and again.value == report.evaluation.value
    assert again.metrics["nll"].value == pytest.approx(report.evaluation.metrics["nll"].value, rel=1e-4)
    limited = evaluate(str(tmp_path / "model"), tiny_recipe(tmp_path, rows=160, evaluate={"limit": 5}), tmp_path)
    assert limited.items == 5


def test_prompts_of_the_recipe_are_used(tmp_path: Path) -> None:
    plain = tiny_recipe(tmp_path, rows=160, train={"steps": 0, "max_length": 512})
    shown = tiny_recipe(tmp_path, rows=160, train={"steps": 0, "max_length": 512}, techniques=[{"use": "few_shot", "k": 2}])
    first, second = (evaluate(str(tmp_path / "model"), recipe, tmp_path) for recipe in (plain, shown))
    assert first.metrics["nll"].value != second.metrics["nll"].value


def test_unknown_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such thing"):
        evaluate("no such thing", tiny_recipe(tmp_path), tmp_path)
