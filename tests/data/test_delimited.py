"""CSV and TSV: wrong quotes and column counts cost exactly the rows they touch, and each is listed."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from uplift.core.errors import DataError
from uplift.data.delimited import read_delimited
from uplift.data.rows import BadRow, Row


def read(path: Path, content: str | bytes) -> list[Row | BadRow]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_delimited(path, "t.csv"))


def kept(rows: list[Row | BadRow]) -> list[dict[str, str]]:
    return [dict(row.values) for row in rows if isinstance(row, Row)]


def rules(rows: list[Row | BadRow]) -> list[tuple[int, str]]:
    return [(row.origin.line, row.rule) for row in rows if isinstance(row, BadRow)]


def test_values_equal_the_standard_reader(tmp_path: Path) -> None:
    table = [["a,b", 'say "hi"'], ["two\nlines", " spaces "], ["", "x" * 200_000], ["ünï", "\r\n inside"]]
    path = tmp_path / "t.csv"
    with open(path, "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["text", "label"], *table])
    rows = list(read_delimited(path, "t.csv"))
    assert [[row["text"], row["label"]] for row in kept(rows)] == table
    assert [row.origin.line for row in rows] == [2, 3, 5, 6]


@pytest.mark.parametrize(("delimiter", "name"), [(";", "semicolon"), ("\t", "tab"), (",", "comma")])
def test_the_delimiter_is_that_of_the_header(tmp_path: Path, delimiter: str, name: str) -> None:
    rows = read(tmp_path / "t.csv", f"text{delimiter}label\n{name}{delimiter}1\n")
    assert kept(rows) == [{"text": name, "label": "1"}]


def test_bad_records_are_listed_and_the_rest_is_kept(tmp_path: Path) -> None:
    content = b'text,label\ngood,1\nonly one\na,b,c\n"x"y,1\n\ncaf\xe9,1\nnul\x00,1\nlast,0\n\n'
    rows = read(tmp_path / "t.csv", content)
    assert kept(rows) == [{"text": "good", "label": "1"}, {"text": "last", "label": "0"}]
    assert rules(rows) == [(3, "columns"), (4, "columns"), (5, "csv_quote"), (6, "blank"), (7, "utf8"), (8, "nul")]


def test_an_open_quote_lists_every_line_it_covers(tmp_path: Path) -> None:
    rows = read(tmp_path / "t.csv", 'text,label\ngood,1\n"open,1\nb,2\nc,3\n')
    assert kept(rows) == [{"text": "good", "label": "1"}]
    assert rules(rows) == [(3, "csv_quote"), (4, "csv_swallowed"), (5, "csv_swallowed")]
    assert "never closed" in str([row for row in rows if isinstance(row, BadRow)][0])


def test_a_broken_record_of_several_lines_leaves_no_fragment(tmp_path: Path) -> None:
    rows = read(tmp_path / "t.csv", 'text,label\n"one\ntwo"x,1\ngood,1\n')
    assert kept(rows) == [{"text": "good", "label": "1"}]
    assert rules(rows) == [(2, "csv_quote"), (3, "csv_swallowed")]


@pytest.mark.parametrize("content", ["\n", "a,a\n1,2\n", "a,\n1,2\n", '"a\n', "a\x00b,c\n"])
def test_headers_that_do_not_name_columns_are_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match=r"t\.csv:1"):
        read(tmp_path / "t.csv", content)


def test_nothing_is_no_row(tmp_path: Path) -> None:
    assert read(tmp_path / "t.csv", "") == []
    assert read(tmp_path / "t.csv", "\ufefftext,label\n") == []
