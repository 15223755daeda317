"""What ``init`` sees in data, and that what it writes can be loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from uplift.core.errors import DataError, UsageError
from uplift.core.recipe import ClassifyTask, FileSource
from uplift.core.recipe_file import load_comparison, load_recipe
from uplift.core.yaml_reader import plain, read_text
from uplift.study.first_look import first_look
from uplift.study.suggestion import quoted
from uplift.verbs.init import init


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def messages(index: int) -> dict[str, Any]:
    turns = [{"role": "user", "content": f"question {index}"}, {"role": "assistant", "content": f"answer {index}"}]
    return {"messages": turns}


CASES: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "label": ("classify", [{"text": f"some words {i}", "label": i % 2} for i in range(40)]),
    "own names": ("classify", [{"id": i, "the message": f"some words {i}", "Spam?": ["yes", "no"][i % 2]} for i in range(600)]),
    "chat": ("chat", [messages(i) for i in range(30)]),
    "pairs": ("chat", [{"prompt": f"p {i}", "completion": f"c {i}"} for i in range(30)]),
    "alpaca": ("chat", [{"instruction": f"do {i}", "input": "", "output": f"done {i}"} for i in range(30)]),
    "text": ("text", [{"text": "a longer text " * 200 + str(i)} for i in range(30)]),
    "odd": ("classify", [{'a: "b" #': f"words {i} \u2028 \t", "- c\n": ["no", "null"][i % 2]} for i in range(40)]),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_loads_and_fits_the_data(case: str, tmp_path: Path) -> None:
    goal, rows = CASES[case]
    data = jsonl(tmp_path / "my data.jsonl", rows)
    written = init(data, tmp_path / "new" / "folder")
    assert written.look.goal == goal and written.look.rows == len(rows)
    recipe, comparison = load_recipe(written.recipe), load_comparison(written.comparison)
    assert (written.recipe.parent / recipe.data.train.path).resolve() == data.resolve()
    assert recipe.task.use == goal and comparison.placebo is (goal == "classify")
    if isinstance(recipe.task, ClassifyTask):
        assert recipe.task.text in rows[0] and recipe.task.label in rows[0]
        assert "tfidf" in [arm.name for arm in comparison.arms]
    assert "# What was seen:" in written.recipe.read_text(encoding="utf-8")
    above = written.comparison.read_text(encoding="utf-8").split("- name: lora\n")[0].rstrip().splitlines()[-1]
    assert above.strip().startswith("#"), "each arm says why it is there"


def test_the_look_counts_labels_and_lengths(tmp_path: Path) -> None:
    rows = [{"text": "x" * 35, "label": "rare" if i < 10 else "frequent"} for i in range(100)]
    look = first_look(jsonl(tmp_path / "a.jsonl", rows))
    assert look.labels == (("frequent", 90), ("rare", 10)) and look.majority == 0.9
    assert look.lengths == (10, 10, 10) and look.text == "text" and look.label == "label"


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    data = jsonl(tmp_path / "a.jsonl", CASES["label"][1])
    (tmp_path / "comparison.yaml").write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        init(data, tmp_path)
    assert not (tmp_path / "recipe.yaml").exists() and (tmp_path / "comparison.yaml").read_text() == "mine"
    init(data, tmp_path, force=True)
    assert (tmp_path / "recipe.yaml").exists()


@pytest.mark.parametrize("content", ["", "\n\n", '{"n": 1}\n{"n": 2}\n', "{broken\n"])
def test_data_without_text_is_refused_by_name(content: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        init(path, tmp_path / "out")
    assert "a.jsonl" in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text", ["plain", "no", "null", "True", "1", "1e-4", "a b", "a: b", "- x", "#", "", '"', "\\", "é", "\n", "\x85", "\x07"]
)
def test_quoted_text_reads_back(text: str) -> None:
    node, problems = read_text(f"key: {quoted(text)}", "test")
    assert plain(node) == {"key": text} and not problems


def test_a_file_in_another_encoding(tmp_path: Path) -> None:
    """What is seen says what to do; with the encoding named, the recipe names it too."""
    lines = "".join(f'"Größe {i}; naïve words",{["gut", "böse"][i % 2]}\n' for i in range(60)) + "plain words,gut\n" * 40
    (tmp_path / "a.csv").write_bytes(("text,label\n" + lines).encode("cp1252"))
    assert any("cp1252" in line for line in init(tmp_path / "a.csv", tmp_path / "first").seen)
    written = init(tmp_path / "a.csv", tmp_path / "second", encoding="cp1252")
    assert written.look.rows == 100 and not written.look.quarantined
    recipe = load_recipe(written.recipe)
    assert isinstance(recipe.data.train, FileSource) and recipe.data.train.encoding == "cp1252"
    assert load_comparison(written.comparison).base.data.train == recipe.data.train
