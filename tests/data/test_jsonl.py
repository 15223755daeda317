"""Strict JSON rows: every fault is a bad row with its place and rule; good rows come through unchanged."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from uplift.core.errors import DataError
from uplift.data.jsonl import read_json, read_jsonl
from uplift.data.lines import read_lines
from uplift.data.rows import BadRow, Row

GOOD = b'{"text": "fine", "n": 1}'


def read(path: Path, content: bytes) -> list[Row | BadRow]:
    path.write_bytes(content)
    return list(read_jsonl(path, "rows.jsonl"))


@pytest.mark.parametrize(
    ("line", "rule", "column"),
    [
        (b'{"text": "a"', "json", 13),
        (b'{"text": "a",}', "json", None),
        (b'{"text": "\xff"}', "utf8", 11),
        (b'{"text": "a\x00b"}', "json", 12),
        (b'{"text": "a\\u0000b"}', "nul", None),
        (b'{"text": "\\ud800"}', "surrogate", None),
        (b'{"text": "a", "text": "b"}', "duplicate_key", None),
        (b'{"n": NaN}', "not_a_number", None),
        (b'{"n": -Infinity}', "not_a_number", None),
        (b'{"n": 1e400}', "number_range", None),
        (b'{"n": 1' + b"0" * 400 + b"}", "number_range", None),
        (b'{"n": 1' + b"0" * 9000 + b"}", "number_range", None),
        (b'{"n": 18446744073709551616}', "number_range", None),
        (b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}", "nesting", None),
        (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nesting", None),
        (b'["a"]', "not_an_object", 1),
        (b"null", "not_an_object", 1),
        (b'{"text": "a"} {"text": "b"}', "json", 15),
        (b"", "blank", None),
        (b" \t", "blank", None),
        (b"\xef\xbb\xbf" + GOOD, "json", 1),
    ],
)
def test_a_bad_line_is_named_and_its_neighbours_are_kept(tmp_path: Path, line: bytes, rule: str, column: int | None) -> None:
    rows = read(tmp_path / "rows.jsonl", GOOD + b"\n" + line + b"\n" + GOOD + b"\n")
    assert [type(row) for row in rows] == [Row, BadRow, Row]
    bad = rows[1]
    assert isinstance(bad, BadRow)
    assert (bad.rule, bad.origin.file, bad.origin.line) == (rule, "rows.jsonl", 2)
    assert column is None or bad.column == column
    assert bad.excerpt.isprintable() and len(bad.excerpt) <= 1000
    assert rows[2].origin.line == 3


def test_marks_line_ends_and_trailing_blanks_change_nothing(tmp_path: Path) -> None:
    rows = read(tmp_path / "rows.jsonl", b"\xef\xbb\xbf" + GOOD + b"\r\n" + GOOD + b"\n\n  \n")
    assert [row.values for row in rows if isinstance(row, Row)] == [json.loads(GOOD)] * 2
    assert len(rows) == 2


def test_a_last_line_without_line_feed(tmp_path: Path) -> None:
    whole, cut = read(tmp_path / "a.jsonl", GOOD + b"\n" + GOOD), read(tmp_path / "b.jsonl", GOOD + b"\n" + GOOD[:-4])
    assert all(isinstance(row, Row) for row in whole)
    assert isinstance(cut[1], BadRow) and cut[1].rule == "cut_line"


def test_a_row_across_chunks_is_whole(tmp_path: Path) -> None:
    values = [{"text": "é" * 300_000 + str(index)} for index in range(5)]
    rows = read(tmp_path / "rows.jsonl", "\n".join(json.dumps(v, ensure_ascii=False) for v in values).encode())
    assert [row.values for row in rows if isinstance(row, Row)] == values


def test_too_long_lines_are_dropped_at_any_cap(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"a" * 100 + b"\n" + b"b" * 101 + b"\n" + b"c\n" + b"d" * 1_000_000)
    lines = list(read_lines(path, "x", cap=100))
    assert [line.too_long for line in lines] == [False, True, False, True]
    assert [line.number for line in lines] == [1, 2, 3, 4]


def test_gzip_whole_cut_and_flipped(tmp_path: Path) -> None:
    packed = gzip.compress(b"\n".join([GOOD] * 5000))
    path = tmp_path / "rows.jsonl.gz"
    assert len(read(path, packed)) == 5000
    for broken in (packed[:-20], packed[:40], packed[:-6] + b"\x00" * 6, b"no gzip at all"):
        with pytest.raises(DataError, match="rows.jsonl: the compressed file is damaged or cut"):
            read(path, broken)


def test_json_lists_keep_lines_and_flaws(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[\n {"a": 1},\n {"a": NaN},\n 7,\n {"a":\n 2}\n]\n')
    rows = list(read_json(path, "rows.json"))
    assert [(type(row).__name__, row.origin.line) for row in rows] == [("Row", 2), ("BadRow", 3), ("BadRow", 4), ("Row", 5)]
    assert [row.rule for row in rows if isinstance(row, BadRow)] == ["not_a_number", "not_an_object"]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('[{"a": 1}, {"a" 2}]', "1:17"),
        ('[{"a": 1}\n {"a": 2}]', "2:2"),
        ('[{"a": 1},', "1:"),
        ('[{"a": 1}] x', "1:12"),
        ("[1, 2", "1:6"),
    ],
)
def test_broken_json_files_are_named_with_the_place(tmp_path: Path, text: str, place: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(DataError, match=f"rows.json:{place}"):
        list(read_json(path, "rows.json"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_a_line_of_100_mb_needs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with open(path, "wb") as stream:
        stream.write(GOOD + b'\n{"text": "')
        for _ in range(100):
            stream.write(b"x" * 2**20)
        stream.write(b'"}\n' + GOOD + b"\n")
    program = (
        "import sys; from pathlib import Path; from uplift.data.jsonl import read_jsonl;"
        "rows = list(read_jsonl(Path(sys.argv[1]), 'rows'));"
        "peak = Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0];"
        "print([getattr(row, 'rule', 'kept') for row in rows], peak)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    kinds, peak = done.stdout.rsplit(" ", 1)
    assert kinds == "['kept', 'too_long', 'kept']"
    assert int(peak) <= 200 * 2**10  # kilobytes; of this process alone, which ru_maxrss is not after a fork
