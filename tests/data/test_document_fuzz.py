"""Broken documents and compressed files: no crash, no hang, every file is a row or a bad row, no text is made up."""

from __future__ import annotations

import gzip
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from tests.data.documents import docx, page, paragraph, pdf

from uplift.core.errors import DataError
from uplift.core.source_section import FileSource
from uplift.data.rows import Row
from uplift.data.sources import stream_source

SECONDS = 2.0
"""Longest time for a file, measured in seconds of this process and its children's answers."""
WORDS = ["good", "film", "plot", "and", "the", "end", "slow", "bright"]
INSERTS = [
    b"\x00",
    b"\xff",
    b"<",
    b">",
    b"<!--",
    b"]]>",
    b"&",
    b"PK\x03\x04",
    b"stream\n",
    b"endobj",
    b"<<",
    b"(",
    b"---\n",
    b"\n\n",
    b"%%EOF",
]
INSERTS += [b"<!DOCTYPE x [<!ENTITY a 'b'>]>", b"<table>" * 50, b"[" * 90, b"{" * 90, b"9" * 30, b"0 0 R", b"\xf0\x9f\x99\x82"]


def words(rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(3, 30)))


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def lines(rng: random.Random) -> bytes:
    return b"".join(json.dumps({"text": words(rng)}).encode() + b"\n" for _ in range(5))


MAKERS: dict[str, tuple[int, Callable[[random.Random], bytes]]] = {
    "docx": (6, lambda rng: docx("".join(paragraph(words(rng)) for _ in range(rng.randint(1, 20))), title="T")),
    "pdf": (5, lambda rng: pdf([words(rng) for _ in range(rng.randint(1, 4))], packed=rng.random() < 0.7, title="T")),
    "md": (4, lambda rng: f"---\ntitle: {words(rng)}\ntags: [a, b]\n---\n# {words(rng)}\n\n{words(rng)}\n".encode()),
    "jsonl.zst": (2, lambda rng: zstd(lines(rng))),
    "jsonl.gz": (1, lambda rng: gzip.compress(lines(rng))),
    "html": (2, lambda rng: page(words(rng) + "<ul><li>" + words(rng) + "</ul>")),
}
"""Ending -> how often, and a good file."""


def broken(content: bytes, rng: random.Random) -> bytes:
    """Cut, flipped, overwritten, swallowed or doubled in one to three places; now and then left alone."""
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        place = rng.randrange(len(content) + 1)
        action = rng.randrange(6)
        if action == 0:
            content = content[:place]
        elif action == 1 and place < len(content):
            content = content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]
        elif action == 2:
            content = content[:place] + rng.choice(INSERTS) + content[place:]
        elif action == 3:
            content = content[:place] + rng.randbytes(rng.randint(1, 8)) + content[place + rng.randint(1, 8) :]
        elif action == 4:
            content = content[:place] + content[place + rng.randint(1, 200) :]
        else:
            content = content[:place] + content[place : place + 300] * 2 + content[place + 300 :]
    return content


def check(folder: Path, cases: int, seed: int) -> Counter[str]:
    """What became of ``cases`` broken files."""
    rng = random.Random(seed)
    endings = [ending for ending, (share, _) in MAKERS.items() for _ in range(share)]
    told: Counter[str] = Counter()
    for case in range(cases):
        ending = endings[case % len(endings)]
        good = MAKERS[ending][1](rng)
        content = broken(good, rng)
        other = rng.choice(endings) if rng.random() < 0.05 else ending  # the wrong ending
        path = folder / f"case.{other}"
        path.write_bytes(content)
        started = time.process_time()
        try:
            stream = stream_source(FileSource(path=path.name), folder)
            items = list(stream)
        except DataError as error:
            assert path.name in str(error) and error.why, f"seed {seed}, case {case}"
            told[f"{ending} refused"] += 1
        else:
            assert stream.rows_in == len(items) > 0, f"seed {seed}, case {case}"
            assert all(isinstance(item, Row) or item.rule and item.detail and item.excerpt.isprintable() for item in items)
            rows = sum(isinstance(item, Row) for item in items)
            told[f"{ending} read" if rows else f"{ending} put aside"] += 1
            if content == good and other == ending:
                told[f"{ending} whole"] += 1
                assert rows == len(items), f"seed {seed}, case {case}"
        assert time.process_time() - started < SECONDS, f"seed {seed}, case {case}"
        path.unlink()
    return told


def test_broken_documents(tmp_path: Path) -> None:
    pytest.importorskip("lxml_html_clean")
    told = check(tmp_path, 2000, seed=5)
    print(dict(sorted(told.items())))
    assert all(told[f"{ending} whole"] for ending in MAKERS)
    assert told["docx put aside"] > 100 and told["pdf put aside"] > 100 and told["md read"] > 100
    assert told["jsonl.zst refused"] > 50 and told["jsonl.gz refused"] > 20


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(6, 16))
def test_many_broken_documents(tmp_path: Path, seed: int) -> None:
    pytest.importorskip("lxml_html_clean")
    print(dict(sorted(check(tmp_path, 5000, seed).items())))


def test_no_packed_text_changes_in_silence(tmp_path: Path) -> None:
    """ZIP, zstd and gzip carry checksums: what is read from a broken file is what was written."""
    rng = random.Random(1)
    for ending, make in (("docx", lambda text: docx(paragraph(text))), ("jsonl.gz", None), ("jsonl.zst", None)):
        for _ in range(150):
            text = words(rng)
            line = json.dumps({"text": text}).encode() + b"\n"
            whole = make(text) if make else gzip.compress(line) if ending.endswith("gz") else zstd_checked(line)
            place = rng.randrange(len(whole))
            path = tmp_path / f"a.{ending}"
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :])
            try:
                items = list(stream_source(FileSource(path=path.name), tmp_path))
            except DataError:
                continue
            assert [item.values["text"] for item in items if isinstance(item, Row)] in ([text], []), (ending, place)


def zstd_checked(content: bytes) -> bytes:
    zstandard = pytest.importorskip("zstandard")
    packed: bytes = zstandard.ZstdCompressor(write_checksum=True).compress(content)
    return packed
