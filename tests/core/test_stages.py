"""Stages in a file: what each one inherits, what flows, and what is refused where."""

from __future__ import annotations

from pathlib import Path

import pytest

from uplift.core.errors import RecipeErrors
from uplift.core.recipe import Stages, stages_in, with_stages
from uplift.core.recipe_file import load_any, load_recipe, load_runnable, to_yaml

CHAIN = """\
name: chain
data: {train: rows.jsonl}
train: {lr: 1e-3}
stages:
  - name: first
    model: some/model
    techniques: [lora]
  - name: second
    train: {epochs: 2}
  - name: third
    model: {use: stage, name: first}
"""


def write(directory: Path, text: str) -> Path:
    path = directory / "chain.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeErrors) as caught:
        load_any(path, overrides)
    return [str(problem) for problem in caught.value.problems]


def test_a_stage_inherits_what_stands_beside_the_list(tmp_path: Path) -> None:
    chain = load_runnable(write(tmp_path, CHAIN), ["train.lr=2e-3", "stages.0.train.lr=3e-3"])
    assert isinstance(chain, Stages) and chain.name == "chain"
    first, second, third = chain.stages
    assert [stage.name for stage in chain.stages] == ["first", "second", "third"]
    assert (first.train.lr, second.train.lr, second.train.epochs) == (3e-3, 2e-3, 2)
    assert [technique.use for technique in first.techniques] == ["lora"] and not second.techniques
    assert second.model.model_dump() == {"use": "stage", "name": "first"}, "the model flows on"
    assert third.model.model_dump() == {"use": "stage", "name": "first"}


def test_references_become_folders(tmp_path: Path) -> None:
    chain = load_runnable(write(tmp_path, CHAIN))
    ready = with_stages(chain.stages[2], {"first": "made/here", "second": "made/there"})
    assert ready.model.model_dump() == {"use": "hf", "id": "made/here", "revision": None}
    assert ready.train == chain.stages[2].train


def test_the_text_loads_to_the_same_stages(tmp_path: Path) -> None:
    chain = load_runnable(write(tmp_path, CHAIN))
    assert load_runnable(write(tmp_path, to_yaml(chain))) == chain
    other = load_runnable(write(tmp_path, CHAIN.replace("epochs: 2", "epochs: 3")))
    assert other.hash() != chain.hash()


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (("epochs: 2", "epoch: 2"), ["chain.yaml:9:20 (stages[1].train.epoch)", "epochs"]),
        (("lr: 1e-3", "lr: fast"), ["chain.yaml:3:13 (stages[0].train.lr)"]),
        (("name: first}", "name: fourth}"), ["`fourth`, which is no stage before it", "chain.yaml:4"]),
        (("name: second", "name: first"), ["two stages have the name `first`"]),
        (("  - name: second\n    train", "  - train"), ["stage 2 has no name", "chain.yaml:8"]),
        (("data: {train", "dat: {train"), ["chain.yaml:2:1 (dat)"]),
        (("stages:\n", "stages: none\nx:\n"), ["chain.yaml"]),
    ],
)
def test_problems_have_places_and_are_told_once(change: tuple[str, str], wanted: list[str], tmp_path: Path) -> None:
    found = problems(write(tmp_path, CHAIN.replace(*change)))
    assert all(any(word in problem for problem in found) for word in wanted), found
    assert len(found) == len({problem.partition("(")[0] for problem in found})


def test_a_chain_is_no_recipe_and_a_recipe_alone_has_no_stages(tmp_path: Path) -> None:
    with pytest.raises(RecipeErrors, match="holds a chain of stages, not a recipe"):
        load_recipe(write(tmp_path, CHAIN))


def test_the_shipped_chain_is_sound() -> None:
    chain = load_runnable(Path(__file__).parents[2] / "recipes" / "chain.yaml")
    assert isinstance(chain, Stages)
    assert stages_in(chain.model_dump()) == ["teacher", "minilm", "teacher", "teacher", "pruned"]
