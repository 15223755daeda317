"""What a run was started with is compared with what it is continued with: the same, allowed and told, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.learn.engines import IDENTITY, losses, make_engine, same, weights

from uplift.core.errors import RecipeError
from uplift.core.recipe import Recipe
from uplift.core.run import Run
from uplift.learn.assemble import assemble, identity_of
from uplift.learn.engine import Engine
from uplift.learn.parallel import Parallel
from uplift.learn.state import MAY_CHANGE
from uplift.testing.tiny import merged, tiny_causal, tiny_recipe, tiny_rows, write_rows
from uplift.verbs.run import run

FULL = {**IDENTITY, "weights": "w", "tokenizer": "t", "recipe": "r", "transformers": "1", "device": "cpu"}


def _interrupted(folder: Path, identity: dict[str, str]) -> Engine:
    engine = make_engine(folder, train={"save_every": 1}, identity=identity)
    engine._over = lambda: engine.state.step == 4  # type: ignore[method-assign]
    engine.train()
    engine.run.close()
    return engine


@pytest.mark.parametrize("key", ["threads", "torch", "transformers", "processes", "device"])
def test_an_allowed_change_is_told_and_continued(tmp_path: Path, key: str) -> None:
    whole = make_engine(tmp_path, "whole")
    whole.train()
    _interrupted(tmp_path, FULL)
    again = make_engine(tmp_path, identity={**FULL, key: "other"})
    assert again.resume() and again.state.step == 4
    told = [event.text for event in again.run.events("identity_changed")]
    assert len(told) == 1 and f"{key}: {FULL[key]} -> other" in told[0]
    again.train()
    assert losses(again) == losses(whole), "here only the label changed, so the numbers are the same"
    assert again.state.identity[key] == "other", "the next checkpoint carries what it was made with"


@pytest.mark.parametrize("key", ["data", "weights", "tokenizer", "recipe"])
def test_another_run_is_refused_by_name_and_nothing_is_changed(tmp_path: Path, key: str) -> None:
    _interrupted(tmp_path, FULL)
    again = make_engine(tmp_path, identity={**FULL, key: "other"})
    before = weights(again)
    with pytest.raises(RecipeError, match="cannot be continued") as caught:
        again.resume()
    assert f"{key}: {FULL[key]} -> other" in caught.value.why and "output_dir" in caught.value.fix
    assert same(weights(again), before) and len(losses(again)) == 4
    assert len(list(again.run.checkpoints.glob("step-*"))) == 2


def test_the_same_identity_is_continued_without_a_word(tmp_path: Path) -> None:
    _interrupted(tmp_path, FULL)
    again = make_engine(tmp_path, identity=dict(FULL))
    assert again.resume() and not again.run.events("identity_changed")


def _identity(recipe: Recipe) -> dict[str, str]:
    parallel = Parallel(torch.device("cpu"))
    return identity_of(assemble(recipe, Path("/"), parallel), parallel)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("identity")
    return folder, _identity(tiny_recipe(folder, "chat", rows=20))


def _one_byte_of_data(folder: Path) -> None:
    rows = tiny_rows("chat", 20)
    content = rows[7]["messages"][1]
    content["content"] = content["content"][:-1] + "!"
    write_rows(folder / "chat-20-0.jsonl", rows)


def _other_weights(folder: Path) -> None:
    tiny_causal(folder / "model", seed=1)


def _other_tokenizer(folder: Path) -> None:
    file = folder / "model" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["merges"].pop()
    file.write_text(json.dumps(content))


def _other_template(folder: Path) -> None:
    file = folder / "model" / "chat_template.jinja"
    file.write_text(file.read_text().replace("assistant\n", "assistant \n"))


def _other_configuration(folder: Path) -> None:
    file = folder / "model" / "config.json"
    file.write_text(file.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))


@pytest.mark.parametrize("edit", [_one_byte_of_data, _other_weights, _other_tokenizer, _other_template, _other_configuration])
def test_an_edit_of_a_file_is_seen(base: tuple[Path, dict[str, str]], tmp_path: Path, edit: Any) -> None:
    recipe = tiny_recipe(tmp_path, "chat", rows=20)
    unchanged = _identity(recipe)
    named = {"recipe", "model"}  # both hold the folder's name here
    assert {k: v for k, v in unchanged.items() if k not in named} == {k: v for k, v in base[1].items() if k not in named}
    edit(tmp_path)
    changed = {key for key, value in _identity(recipe).items() if value != unchanged[key]}
    assert changed and changed.isdisjoint(MAY_CHANGE), f"changed: {changed}"


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"train": {"lr": 5e-2}},
        {"train": {"batch_tokens": 128}},
        {"train": {"schedule": {"use": "cosine"}}},
        {"data": {"split": {"seed": 1}}},
        {"techniques": [{"use": "neftune"}]},
    ],
    ids=str,
)
def test_another_recipe_is_another_folder(tmp_path: Path, change: dict[str, Any]) -> None:
    def folder(recipe: Recipe) -> Path:
        with Run.create(recipe.model_dump(mode="json"), Path(recipe.output_dir), recipe.name, recipe.hash()) as opened:
            return opened.path

    first = tiny_recipe(tmp_path, "chat", rows=20)
    assert folder(first) == folder(tiny_recipe(tmp_path, "chat", rows=20))
    assert folder(first) != folder(tiny_recipe(tmp_path, "chat", rows=20, **merged({}, change)))


def test_a_run_with_edited_data_is_refused_by_the_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(tmp_path, "chat", rows=20, evaluate={"base": False}, train={"save_every": 1})
    over = Engine._over

    def interrupted(engine: Engine) -> bool:
        if engine.state.step == 2:
            raise KeyboardInterrupt
        return over(engine)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Engine, "_over", interrupted)
        run(recipe, tmp_path)
    original = (tmp_path / "chat-20-0.jsonl").read_bytes()
    _one_byte_of_data(tmp_path)
    with pytest.raises(RecipeError, match="cannot be continued") as caught:
        run(recipe, tmp_path)
    assert "data: " in caught.value.why and caught.value.exit_code == 2
    (tmp_path / "chat-20-0.jsonl").write_bytes(original)
    assert run(recipe, tmp_path).status == "finished", "with the old data back it goes on"
