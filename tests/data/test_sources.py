"""Sources: formats are recognised, filters and limits count as documented, faults of a whole file are named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from uplift.core.errors import DataError
from uplift.core.recipe import FileSource
from uplift.data.sources import read_source

ROWS = [{"text": f"row {index}", "label": index % 2} for index in range(6)]


def source(path: str | Path, use: str = "auto", **more: object) -> FileSource:
    return FileSource.model_validate({"use": use, "path": str(path), **more})


def write_all(folder: Path) -> dict[str, Path]:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    table = "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in ROWS)
    files = {
        "a.jsonl": lines.encode(),
        "b.json": json.dumps(ROWS, indent=1).encode(),
        "c.json": lines.encode(),
        "d.csv": table.encode(),
        "e.tsv": table.replace(",", "\t").encode(),
        "f.jsonl.gz": gzip.compress(lines.encode()),
        "g.data": lines.encode(),
        "h": table.encode(),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "i.parquet", row_group_size=2)
    return {path.name: path for path in folder.iterdir()}


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    kinds = {}
    for name, path in write_all(tmp_path).items():
        found = read_source(source(path), tmp_path)
        kinds[name] = found.format
        assert [(row.values["text"], str(row.values["label"])) for row in found.rows] == [
            (row["text"], str(row["label"])) for row in ROWS
        ], name
        assert found.rows_in == len(found.rows) == 6 and not found.quarantined
    assert kinds == {
        "a.jsonl": "jsonl", "b.json": "json", "c.json": "jsonl", "d.csv": "csv", "e.tsv": "tsv",
        "f.jsonl.gz": "jsonl", "g.data": "jsonl", "h": "csv", "i.parquet": "parquet",
    }  # fmt: skip


def test_saved_datasets_are_read_and_several_splits_refused(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_list(ROWS)
    whole.save_to_disk(tmp_path / "one", num_shards=2)
    found = read_source(source("one"), tmp_path)
    assert [row.values for row in found.rows] == ROWS and found.format == "dataset"
    assert [row.origin.line for row in found.rows] == [1, 2, 3, 4, 5, 6]
    datasets.DatasetDict({"train": whole, "test": whole}).save_to_disk(tmp_path / "two")
    with pytest.raises(DataError, match="several splits: test, train"):
        read_source(source("two"), tmp_path)
    assert len(read_source(source("two/train"), tmp_path).rows) == 6


def test_filters_and_limits(tmp_path: Path) -> None:
    write_all(tmp_path)
    for name in ("a.jsonl", "d.csv", "i.parquet"):
        found = read_source(source(name, where={"label": 1}, limit=2), tmp_path)
        assert [row.values["text"] for row in found.rows] == ["row 1", "row 3"]
        assert found.rows_in == 2
    with pytest.raises(DataError, match="no row passes"):
        read_source(source("d.csv", where={"label": "7"}), tmp_path)
    with pytest.raises(DataError, match="no column `lable`, did you mean `label`"):
        read_source(source("d.csv", where={"lable": "1"}), tmp_path)


def test_where_tells_booleans_from_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"ok": true}\n{"ok": 1}\n{"ok": "true"}\n')
    assert [row.values["ok"] for row in read_source(source("a.jsonl", where={"ok": True}), tmp_path).rows] == [True, "true"]
    assert [row.values["ok"] for row in read_source(source("a.jsonl", where={"ok": 1}), tmp_path).rows] == [1]


def test_text_files_are_paragraphs_and_folders_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\n\none\r\ntwo\n\n \nthree\xff\n\nfour")
    found = read_source(source("a.txt"), tmp_path)
    assert [(row.values["text"], row.origin.line) for row in found.rows] == [("one\ntwo", 3), ("four", 9)]
    assert [(row.rule, row.origin.line) for row in found.quarantined] == [("utf8", 7)]
    (tmp_path / "docs" / "sub").mkdir(parents=True)
    (tmp_path / "docs" / "b.md").write_text("# B\n\nbody\n")
    (tmp_path / "docs" / "sub" / "a.txt").write_text("A")
    (tmp_path / "docs" / ".hidden.txt").write_text("no")
    documents = read_source(source("docs"), tmp_path)
    assert [row.values["text"] for row in documents.rows] == ["# B\n\nbody", "A"]


def test_a_file_of_code_is_one_row_and_a_script_beside_tables_is_none(tmp_path: Path) -> None:
    code = tmp_path / "code"
    (code / "deep").mkdir(parents=True)
    texts = {"a.py": "a, b = 1, 2\n\n\nc, d = 3, 4\n", "deep/b.sql": "x, y\n1, 2\n", "notes.md": "# Notes\n"}
    for name, text in texts.items():
        (code / name).write_text(text)
    found = read_source(source(code), tmp_path)
    assert [row.values["text"] for row in found.rows] == [text.strip() for text in texts.values()], (
        "not taken for paragraphs or for CSV"
    )
    assert len(read_source(source(code / "a.py"), tmp_path).rows) == 1
    assert len(read_source(source(f"{code}/*.py"), tmp_path).rows) == 1
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "load.py").write_text("print(1)\n")
    (tmp_path / "set" / "rows.jsonl").write_text('{"text": "a"}\n')
    assert [row.values for row in read_source(source(tmp_path / "set"), tmp_path).rows] == [{"text": "a"}]


def test_files_of_a_folder_that_are_not_read_are_told(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.xlsx", "c/d.png", "script.py", ".hidden"):
        (tmp_path / "rows" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "rows" / name).write_text('{"text": "one"}\n')
    found = read_source(FileSource(path="rows"), tmp_path)
    assert len(found.rows) == 1
    assert found.notes == ("3 files of rows are not read, by their endings: b.xlsx, c/d.png, script.py",)
    assert read_source(FileSource(path="rows/a.jsonl"), tmp_path).notes == ()
    assert read_source(FileSource(path="rows/*.jsonl"), tmp_path).notes == ()


def test_folders_and_patterns(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": name}) + "\n")
    for path in (".", "*.jsonl"):
        assert [row.values["text"] for row in read_source(source(path), tmp_path).rows] == ["a.jsonl", "b.jsonl"]
    (tmp_path / "c.csv").write_text("text\nx\n")
    with pytest.raises(DataError, match="different formats: csv, jsonl"):
        read_source(source("."), tmp_path)


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.csv", "empty.txt", "empty.json", "header.csv"])
def test_an_empty_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("text,label\n" if name == "header.csv" else "")
    with pytest.raises(DataError, match=rf"{name}: there is no row"):
        read_source(source(name), tmp_path)


def test_missing_files_name_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "reviews.jsonl").write_text("{}")
    with pytest.raises(DataError, match="did you mean `reviews.jsonl`"):
        read_source(source("review.jsonl"), tmp_path)
    with pytest.raises(DataError, match="no file matches"):
        read_source(source("*.csv"), tmp_path)


def test_parquet_damage_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS * 50), path, write_page_checksum=True)
    whole = path.read_bytes()
    for size in (0, 3, 50, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match="rows.parquet"):
            read_source(source(path.name), tmp_path)
    body = bytearray(whole)
    body[len(body) // 8] ^= 4
    path.write_bytes(body)
    with pytest.raises(DataError, match="rows.parquet"):
        read_source(source(path.name), tmp_path)


def test_parquet_rows_with_bytes_that_are_no_text(tmp_path: Path) -> None:
    column = pa.array([b"good", b"bad \xff", b"fine"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": column}), tmp_path / "rows.parquet")
    found = read_source(source("rows.parquet"), tmp_path)
    assert [row.values["text"] for row in found.rows] == ["good", "fine"]
    assert [(row.rule, row.origin.line) for row in found.quarantined] == [("utf8", 2)]


def test_a_word_that_does_not_fit_the_file_is_refused(tmp_path: Path) -> None:
    files = write_all(tmp_path)
    with pytest.raises(DataError, match="this is no parquet"):
        read_source(source(files["a.jsonl"], use="parquet"), tmp_path)
    with pytest.raises(DataError, match="this is no csv"):
        read_source(source(files["i.parquet"], use="csv"), tmp_path)
    assert len(read_source(source(files["g.data"], use="jsonl"), tmp_path).rows) == 6


def test_the_hash_follows_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n')
    before = read_source(source(path), tmp_path).sha256
    assert read_source(source(path), tmp_path).sha256 == before
    path.write_text('{"text": "b"}\n')
    assert read_source(source(path), tmp_path).sha256 != before
