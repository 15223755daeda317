"""What waits on disk comes back as it was; columns are found where texts are."""

from __future__ import annotations

import datetime
import decimal
import errno
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from uplift.core.errors import DataError, ResourceError
from uplift.core.storage import scratch_file
from uplift.core.values import Origin
from uplift.data.clean.columns import choose_columns, text_at, with_texts
from uplift.data.clean.spool import Spool
from uplift.data.rows import Row

PLAIN = st.none() | st.booleans() | st.integers(-(2**63), 2**64) | st.floats(allow_nan=False) | st.text() | st.binary()
DATES = st.datetimes() | st.dates() | st.times() | st.timedeltas() | st.decimals(allow_nan=False)
VALUES = st.recursive(PLAIN | DATES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))


@given(records=st.lists(st.dictionaries(st.text(alphabet="abc\n", max_size=3), VALUES, max_size=3), max_size=5))
def test_values_come_back_as_they_were(records: list[dict[str, Any]]) -> None:
    with scratch_file() as stream:
        spool = Spool(stream, Path())
        for record in records[:2]:
            spool.append(record)
        assert list(spool) == records[:2]
        for record in records[2:]:
            spool.append(record)
        assert list(spool) == list(spool) == records


def test_types_are_kept() -> None:
    record = [
        decimal.Decimal("1.10"),
        datetime.date(2024, 1, 2),
        datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC),
        b"\xff",
        1.0,
        1,
    ]
    with scratch_file() as stream:
        spool = Spool(stream, Path())
        spool.append(record)
        [back] = spool
    assert [(type(value), value) for value in back] == [(type(value), value) for value in record]


def test_what_cannot_be_kept_and_a_full_disk_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def seek(self, *where: int) -> None: ...

        def write(self, content: bytes) -> None:
            raise OSError(errno.ENOSPC, "full")

    spool = Spool(Full(), Path("/tmp"))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="type complex"):
        spool.append([1j])
    spool.append([1])
    with pytest.raises(ResourceError, match="disk is full"):
        list(spool)


# -- columns -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("row", "named", "expected"),
    [
        ({"text": "a", "title": "A long title of a story"}, (), ("text",)),
        ({"messages": [{"role": "user", "content": "a"}]}, (), ("messages",)),
        ({"conversations": [{"from": "human", "value": "a"}]}, (), ("conversations",)),
        ({"instruction": "a", "output": "b", "n": 1}, (), ("instruction", "output")),
        ({"instruction": "a", "input": "", "output": "b"}, (), ("instruction", "input", "output")),
        ({"prompt": "a", "completion": "b"}, (), ("prompt", "completion")),
        (
            {"body": "Quite a long text of words", "id": "3f2a9c0d11e54b7c8a", "link": "https://example.org/a-b-c"},
            (),
            ("body",),
        ),
        ({"title": "Only a short story", "body": "她在河边的老房子里住了三十年，从来没有离开过。"}, (), ("title", "body")),
        ({"text": "a", "title": "b"}, ("title",), ("title",)),
    ],
)
def test_columns_with_texts_are_found(row: dict[str, Any], named: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert choose_columns([Row(row, Origin("a.jsonl", 1))] * 3, named).names == expected


def test_columns_that_are_not_there_are_told() -> None:
    rows = [Row({"id": "x1", "n": 3}, Origin("a.jsonl", 1))]
    with pytest.raises(DataError, match="no column reads like text") as raised:
        choose_columns(rows, ())
    assert "id, n" in raised.value.why
    with pytest.raises(DataError, match="there is no column `txt`"):
        choose_columns([Row({"text": "a"}, Origin("a.jsonl", 1))], ["txt"])


def test_texts_go_back_to_their_places() -> None:
    row = {
        "a": "one",
        "b": ["two", " ", 3],
        "c": [{"role": "system", "content": "four"}, {"from": "x", "value": "five", "k": 1}],
        "d": 6,
    }
    columns = choose_columns([Row(row, Origin("a.jsonl", 1))], ["a", "b", "c"])
    slots = columns.slots(row)
    assert [(text_at(row, slot), system) for slot, system in slots] == [
        ("one", False), ("two", False), ("four", True), ("five", False),
    ]  # fmt: skip
    assert with_texts(row, [slot for slot, _ in slots], ["1", "2", "4", "5"]) == {
        "a": "1", "b": ["2", " ", 3], "c": [{"role": "system", "content": "4"}, {"from": "x", "value": "5", "k": 1}], "d": 6,
    }  # fmt: skip
    assert row["a"] == "one" and row["c"][0]["content"] == "four"
