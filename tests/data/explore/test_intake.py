"""One pass over a source: every row is counted once, bad ones with their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from uplift.core.errors import DataError
from uplift.core.source_section import FileSource
from uplift.core.storage import write_atomically
from uplift.data.explore.intake import fetch_rows, take_in
from uplift.data.explore.sample import RowSample
from uplift.data.sources import stream_source
from uplift.testing.tiny import tiny_rows


def test_counts_by_hand(take) -> None:
    taken = take(
        [
            {"text": "one two", "label": "a"},
            {"text": "One  Two", "label": "a"},
            {"text": "one two", "label": "b"},
            {"text": "", "label": "b"},
            {"text": "three", "label": None},
            {"text": "four", "label": "b", "extra": 3},
        ],
        label="label",
    )
    assert (taken.rows_in, taken.rows, taken.quarantined) == (6, 4, 2)
    assert {rule.rule: rule.count for rule in taken.bad} == {"empty_text": 1, "null": 1}
    assert taken.characters.tolist() == [7, 8, 7, 4] and taken.words.tolist() == [2, 2, 2, 1]
    assert len(set(taken.exact.tolist())) == 3 and len(set(taken.keys.tolist())) == 2
    assert [taken.label_names[label] for label in taken.labels] == ["a", "a", "b", "b"]
    columns = {column.name: column for column in taken.columns}
    assert (columns["text"].missing, columns["text"].distinct, columns["text"].use) == (1, 4, "text")
    assert (columns["label"].missing, columns["label"].examples, columns["label"].use) == (1, ["b", "a"], "label")
    assert (columns["extra"].missing, columns["extra"].types) == (5, {"number": 1})


def test_a_bad_line_is_named_with_its_column(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_atomically(path, '{"text": "good"}\n{"text": oops}\n{"text": "fine"}\n')
    taken = take_in(stream_source(FileSource(path=str(path)), Path()))
    assert (taken.rows_in, taken.rows, taken.quarantined) == (3, 2, 1)
    (example,) = taken.bad[0].examples
    assert example.place == f"{path}:2:10" and "oops" in example.excerpt


def test_labels_of_a_sorted_file_are_found(take) -> None:
    """The first thousand rows hold one label only."""
    rows = [{"text": f"text {index}", "label": str(index // 1500)} for index in range(3000)]
    taken = take(rows)
    assert taken.aim.goal == "classify" and taken.label_names == ["0", "1"]


@pytest.mark.parametrize(("kind", "goal"), [("classify", "classify"), ("chat", "chat"), ("text", "text")])
def test_the_task_is_told(take, kind: str, goal: str) -> None:
    assert take(tiny_rows(kind, 60)).aim.goal == goal  # type: ignore[arg-type]


def test_columns_that_are_named_win(take) -> None:
    rows = [{"body": f"long text number {i}", "title": f"t{i}", "kind": "ab"[i % 2]} for i in range(40)]
    taken = take(rows, text="title", label="kind")
    assert (taken.aim.text, taken.aim.label, taken.characters.max()) == ("title", "kind", 3)
    with pytest.raises(DataError, match="no column `tittle`, did you mean `title`"):
        take(rows, text="tittle")


def test_shortest_and_longest_rows_are_those(take) -> None:
    rows = [{"text": "x" * (1 + (index * 37) % 500)} for index in range(500)]
    taken = take(rows)
    assert [len(row.text) for row in taken.longest] == [500, 499, 498, 497, 496, 495]
    assert [len(row.text) for row in taken.shortest] == [1, 2, 3, 4, 5, 6]


def test_rows_outside_the_sample_are_read_again(take) -> None:
    taken = take([{"text": f"text {index}"} for index in range(50)] + [{"text": ""}, {"text": "last"}])
    taken.sample = RowSample(3, 10**6)
    found = fetch_rows(taken, [0, 17, 50])
    assert {number: row.text for number, row in found.items()} == {0: "text 0", 17: "text 17", 50: "last"}
    assert found[50].origin.line == 52  # the empty row is no row


def test_nothing_to_learn_from_is_said(take) -> None:
    with pytest.raises(DataError, match="nothing here to learn from"):
        take([{"number": 1}, {"number": 2}])
    with pytest.raises(DataError, match="nothing here to learn from"):
        take([{"text": ""}, {"text": " "}])
