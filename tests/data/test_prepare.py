"""`data.prepare` in a recipe: training rows pass all steps before the split, other parts are changed and lose no row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from uplift.core.errors import DataError, RecipeError
from uplift.core.recipe import ChatTask, ClassifyTask, Data, TextTask
from uplift.data.dataset import Parts, load_parts
from uplift.testing.tiny import tiny_rows, write_rows

MAIL = "write to anna.smith@mail-server.net"
STEPS = ["repair", "pii", {"use": "dedup", "near": False}]


def load(folder: Path, task: Any = None, **data: Any) -> Parts:
    return load_parts(Data.model_validate(data), task or ClassifyTask(), folder, "class")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """200 training rows, 20 of them twice and one with an address; 30 test rows, twice each, all with an address."""
    rows = tiny_rows("classify", 200)
    write_rows(tmp_path / "train.jsonl", [*rows, *rows[:20], {"text": f"Oh dear, {MAIL}.", "label": "positive"}])
    test = [{**row, "text": f"{row['text']}\u00a0 {MAIL}"} for row in tiny_rows("classify", 30, seed=1)]
    write_rows(tmp_path / "test.jsonl", [*test, *test])
    return tmp_path


def test_every_row_is_accounted_for(files: Path) -> None:
    parts = load(files, train="train.jsonl", prepare=STEPS, split={"test": 0.2})
    assert (parts.rows_in, parts.rows_kept, len(parts.dropped), len(parts.quarantined)) == (221, 201, 20, 0)
    assert [(step.use, step.rows_in, step.rows_out) for step in parts.prepared] == [
        ("repair", 221, 221),
        ("pii", 221, 221),
        ("dedup", 221, 201),
    ]
    assert parts.prepared[1].changes == {"email": 1} and parts.prepared[2].dropped == {"exact": 20}
    assert {row.origin.line for row in parts.dropped} == set(range(201, 221))
    everything = [*parts.train, *parts.test]
    assert len({sample.id for sample in everything}) == len(everything) == 201
    assert any(sample.text == "Oh dear, write to [email]." for sample in everything)


def test_another_part_is_changed_and_loses_no_row(files: Path) -> None:
    parts = load(files, train="train.jsonl", test="test.jsonl", prepare=STEPS)
    assert len(parts.test) == 60 and parts.rows_in == 281
    assert all(
        sample.text and sample.text.endswith(" write to [email]") and "\u00a0" not in sample.text for sample in parts.test
    )


def test_a_step_that_drops_is_no_matter_of_the_test_part(files: Path) -> None:
    steps = [{"use": "pii", "action": "drop"}]
    parts = load(files, train="train.jsonl", test="test.jsonl", prepare=steps)
    assert len(parts.test) == 60 and all(sample.text and MAIL in sample.text for sample in parts.test)
    assert [row.rule for row in parts.dropped] == ["email"]


def test_decontaminate_looks_for_the_recipe_s_own_test(files: Path) -> None:
    rows = [
        {"text": f"{number} thoughts on how a long day at the sea can end for two", "label": "positive"} for number in range(40)
    ]
    test = [{"text": "The quick brown fox jumps over the lazy dog near the old river bank at dawn", "label": "negative"}]
    write_rows(files / "a.jsonl", [*rows, *tiny_rows("classify", 20), test[0]])
    write_rows(files / "b.jsonl", [*test, *tiny_rows("classify", 2, seed=9)])
    parts = load(files, train="a.jsonl", test="b.jsonl", prepare=["decontaminate"])
    assert 61 in {row.origin.line for row in parts.dropped} and "b.jsonl:1" in parts.dropped[-1].detail
    with pytest.raises(RecipeError, match="`decontaminate` has nothing to compare with"):
        load(files, train="a.jsonl", prepare=["decontaminate"], split={"test": 0.2})


def test_without_steps_nothing_happens(files: Path) -> None:
    plain, empty = load(files, train="train.jsonl"), load(files, train="train.jsonl", prepare=[])
    assert plain.fingerprint == empty.fingerprint and plain.prepared == () and plain.rows_in == plain.rows_kept == 221


def test_chats_and_texts_are_prepared_too(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": f"I am {MAIL}"}]
    write_rows(
        tmp_path / "chat.jsonl", [{"messages": [*turns, {"role": "assistant", "content": f"hello {n // 2}"}]} for n in range(8)]
    )
    chats = load_parts(Data.model_validate({"train": "chat.jsonl", "prepare": STEPS}), ChatTask(), tmp_path, "language")
    assert len(chats.train) == 4 and chats.train[0].messages[1].content == "I am write to [email]"
    write_rows(tmp_path / "text.jsonl", [{"body": f"row {n // 2}\u00a0 of eight", "other": MAIL} for n in range(8)])
    texts = load_parts(
        Data.model_validate({"train": "text.jsonl", "prepare": STEPS}), TextTask(text="body"), tmp_path, "language"
    )
    assert [sample.text for sample in texts.train] == [f"row {n}  of eight" for n in range(4)]


def test_steps_that_leave_nothing_are_an_error(files: Path) -> None:
    with pytest.raises(DataError, match="leaves no training row") as raised:
        load(files, train="train.jsonl", prepare=["filter"])
    assert "by `filter`" in raised.value.why


def test_a_quality_step_needs_somebody_who_can_open_models(files: Path) -> None:
    with pytest.raises(RecipeError, match="`quality` cannot open models here"):
        load(files, train="train.jsonl", prepare=[{"use": "quality", "model": "x", "most": 1.0}])
