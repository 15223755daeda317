"""Parts: every row counted, faults named, the same content whatever the head and the order."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from uplift.core.errors import DataError, UsageError
from uplift.core.recipe import ChatTask, ClassifyTask, Data
from uplift.data.dataset import load_parts
from uplift.testing.tiny import tiny_rows


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path.name


def data(train: str, **more: Any) -> Data:
    return Data.model_validate({"train": train, **more})


def test_every_row_is_accounted_for(tmp_path: Path) -> None:
    rows = [*tiny_rows("classify", 200), "broken", {"text": "x", "label": None}, {"text": "", "label": "positive"}]
    random.Random(0).shuffle(rows)
    parts = load_parts(
        data(write(tmp_path / "a.jsonl", rows), split={"validation": 0.1, "test": 0.2}), ClassifyTask(), tmp_path, "class"
    )
    assert parts.rows_in == 203 == parts.rows_kept + len(parts.quarantined) and parts.rows_kept == 200
    assert len(parts.train) + len(parts.validation) + len(parts.test) == 200
    assert sorted(bad.rule for bad in parts.quarantined) == ["empty_text", "json", "null"]
    assert parts.labels == ("negative", "positive")
    assert parts.leakage.exact == 0 and parts.leakage.tested == len(parts.test)
    lines = [bad.origin.line for bad in parts.quarantined]
    assert lines == sorted(lines) and all(json.dumps(bad.as_json()) for bad in parts.quarantined)


def test_too_many_bad_rows_stop_and_name_the_first(tmp_path: Path) -> None:
    name = write(tmp_path / "a.jsonl", [*tiny_rows("classify", 20), "broken", "worse"])
    with pytest.raises(DataError, match=r"a.jsonl:21:1 .*2 of 22 rows are bad; at most 5% may be") as raised:
        load_parts(data(name), ClassifyTask(), tmp_path, "class")
    assert "a.jsonl:22:1: json" in str(raised.value)
    assert load_parts(data(name, max_bad=0.1), ClassifyTask(), tmp_path, "class").rows_kept == 20


def test_own_files_for_parts_know_the_training_labels(tmp_path: Path) -> None:
    train = write(tmp_path / "a.jsonl", tiny_rows("classify", 40))
    test = write(tmp_path / "b.jsonl", [*tiny_rows("classify", 30, seed=1), {"text": "odd", "label": "positve"}])
    parts = load_parts(data(train, test=test), ClassifyTask(), tmp_path, "language")
    assert (len(parts.train), len(parts.test), parts.rows_in) == (40, 30, 71)
    [bad] = parts.quarantined
    assert (bad.rule, bad.origin.file) == ("unknown_label", "b.jsonl") and "did you mean `positive`" in bad.detail


def test_leaks_between_files_are_reported(tmp_path: Path) -> None:
    rows = tiny_rows("classify", 60)
    test = [rows[0], {**rows[1], "text": rows[1]["text"].upper()}]
    parts = load_parts(
        data(write(tmp_path / "a.jsonl", rows), test=write(tmp_path / "b.jsonl", test)), ClassifyTask(), tmp_path, "class"
    )
    assert (parts.leakage.exact, parts.leakage.normalized) == (1, 2)


def test_heads_split_alike_and_order_does_not_matter(tmp_path: Path) -> None:
    rows = tiny_rows("classify", 80)
    name, split = write(tmp_path / "a.jsonl", rows), {"test": 0.3}
    words = load_parts(data(name, split=split), ClassifyTask(), tmp_path, "language")
    classes = load_parts(data(name, split=split), ClassifyTask(prompt="{text}?"), tmp_path, "class")
    assert [sample.id for sample in words.test] == [sample.id for sample in classes.test]
    other = write(tmp_path / "b.jsonl", rows[::-1])
    assert load_parts(data(other, split=split), ClassifyTask(), tmp_path, "language").fingerprint == words.fingerprint


@pytest.mark.parametrize("change", ["text", "label", "drop", "split"])
def test_the_fingerprint_follows_the_content(tmp_path: Path, change: str) -> None:
    rows, split = tiny_rows("classify", 40), {"test": 0.3}
    before = load_parts(data(write(tmp_path / "a.jsonl", rows), split=split), ClassifyTask(), tmp_path, "class").fingerprint
    if change == "text":
        rows[3] = {**rows[3], "text": rows[3]["text"] + "!"}
    elif change == "label":
        rows[3] = {**rows[3], "label": "positive" if rows[3]["label"] == "negative" else "negative"}
    elif change == "drop":
        rows.pop()
    else:
        split = {"test": 0.6}
    after = load_parts(data(write(tmp_path / "a.jsonl", rows), split=split), ClassifyTask(), tmp_path, "class").fingerprint
    assert after != before


def test_the_fingerprint_sees_answers(tmp_path: Path) -> None:
    prints = set()
    for answer in ("yes", "no"):
        name = write(tmp_path / "a.jsonl", [{"prompt": "q", "completion": answer}])
        prints.add(load_parts(data(name), ChatTask(), tmp_path, "language").fingerprint)
    assert len(prints) == 2


def test_a_part_given_twice_or_empty(tmp_path: Path) -> None:
    name = write(tmp_path / "a.jsonl", tiny_rows("classify", 4))
    with pytest.raises(UsageError, match="the test part is given twice"):
        load_parts(data(name, test=name, split={"test": 0.1}), ClassifyTask(), tmp_path, "class")
    with pytest.raises(DataError, match="the test part is empty"):
        load_parts(data(name, split={"test": 1e-9}), ClassifyTask(), tmp_path, "class")


@pytest.mark.parametrize("bad", ["x", {"prompt": None, "completion": "y"}])
def test_all_rows_bad_is_told_as_bad_rows(tmp_path: Path, bad: Any) -> None:
    name = write(tmp_path / "a.jsonl", [bad, bad])
    with pytest.raises(DataError, match="2 of 2 rows are bad"):
        load_parts(data(name, max_bad=1.0), ChatTask(), tmp_path, "language")
