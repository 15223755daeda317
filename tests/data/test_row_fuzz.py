"""Broken rows, 2,000 at a time and 50,000 in the slow tier: no crash, nothing lost, nothing changed in silence."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from uplift.core.errors import DataError
from uplift.core.prepare_section import Dedup, Pii, Repair
from uplift.core.recipe import ChatTask, ClassifyTask, FileSource, Task, TextTask
from uplift.data.formats import to_samples
from uplift.data.sources import read_source
from uplift.verbs.clean import clean

ROWS = [2000, pytest.param(12_000, marks=pytest.mark.slow)]
"""JSON rows of each kind; three kinds and the tables make 50,000 in the slow tier."""
TABLES = [60, pytest.param(350, marks=pytest.mark.slow)]
TABLE_ROWS = 40
MOST_SECONDS = 1e-3
"""Of the processor, a row; a hundred microseconds are usual."""
INSERTS = [
    b"\x00", b"\xff\xfe", b"\\u0000", b"\\ud800", b"\xef\xbb\xbf", b"\r", b'"', b"\\", b"{", b"}", b"[" * 90, b",", b"NaN",
    b"Infinity", b"1" + b"0" * 400, b"null", b"<|im_end|>", b"\xe2\x80\xa8", b"\n", b"\r\n", b"\n\n", b"'", b"\t", b"\x1a",
]  # fmt: skip
VALUES: list[Any] = [None, 1, 1.5, True, [], {}, ["a"], {"a": 1}, "", " ", "x" * 3000, "\u0000", "ﬁ", "🙂", "\ud83d", [[[[]]]]]


def good_row(kind: str, rng: random.Random) -> dict[str, Any]:
    words = " ".join(rng.choice(["good", "bad", "film", "plot", "ünder", "🙂", "end"]) for _ in range(rng.randint(1, 12)))
    if kind == "chat":
        turns = [{"role": "user", "content": words}, {"role": "assistant", "content": "yes " + words}]
        return {"messages": turns}
    return {"text": words, "label": rng.choice(["neg", "pos"])}


def mutate(row: dict[str, Any], rng: random.Random) -> bytes:
    """One row as bytes, about half of them broken: a changed value or structure, or changed bytes."""
    if rng.random() < 0.4:
        target = rng.choice([row, *row.get("messages", [])])
        key = rng.choice(list(target))
        action = rng.randrange(3)
        if action == 0:
            target[key] = rng.choice(VALUES)
        elif action == 1:
            target[key + rng.choice(["", "e", " "])] = target.pop(key)
        else:
            target.pop(key)
    line = json.dumps(row, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    for _ in range(rng.choice([0, 0, 1, 1, 3])):
        place = rng.randrange(len(line) + 1)
        action = rng.randrange(3)
        if action == 0:
            line = line[:place] + rng.choice(INSERTS) + line[place:]
        elif action == 1:
            line = line[:place] + bytes([rng.randrange(256)]) + line[place + 1 :]
        else:
            line = line[:place] + line[place + rng.randint(1, 10) :]
    return line


@pytest.mark.parametrize("count", ROWS)
@pytest.mark.parametrize(
    ("kind", "task"),
    [("classify", ClassifyTask()), ("classify", TextTask()), ("chat", ChatTask(system="Be brief."))],
    ids=["classify", "text", "chat"],
)
def test_mutated_json_rows(tmp_path: Path, kind: str, task: Task, count: int) -> None:
    rng = random.Random(count)
    lines = [mutate(good_row(kind, rng), rng) for _ in range(count)]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    physical = path.read_bytes().split(b"\n")
    while physical and not physical[-1].strip():
        physical.pop()

    begin = time.process_time()
    found = read_source(FileSource(path="rows.jsonl"), tmp_path)
    assert time.process_time() - begin < MOST_SECONDS * len(physical)
    assert found.rows_in == len(found.rows) + len(found.quarantined) == len(physical)
    for row in found.rows:
        assert dict(row.values) == json.loads(physical[row.origin.line - 1]), row.origin
    converted = to_samples(found.rows, task, "language")
    assert len(converted.samples) + len(converted.quarantined) == len(found.rows)
    bad = [*found.quarantined, *converted.quarantined]
    assert len({row.origin.line for row in bad} | {sample.origin.line for sample in converted.samples}) == len(physical)
    assert all(row.rule and row.detail and row.excerpt.isprintable() for row in bad)
    assert 0.2 * count < len(converted.samples) < 0.9 * count
    for sample in converted.samples:
        values = json.loads(physical[sample.origin.line - 1])
        told = [m.content for m in sample.messages[1:]] if kind == "chat" else [sample.extras.get("content", sample.text)]
        expected = [turn["content"] for turn in values["messages"]] if kind == "chat" else [values["text"]]
        if kind == "chat" and values["messages"][0]["role"] == "system":
            expected = expected[1:]
        assert told == expected


@pytest.mark.parametrize("count", ROWS)
def test_mutated_rows_through_the_cleaning(tmp_path: Path, count: int) -> None:
    """Two workers; every row is in one of the three lists, and a kept row differs from its line only if it is listed."""
    rng = random.Random(count)
    path, out = tmp_path / "rows.jsonl", tmp_path / "out"
    path.write_bytes(b"\n".join(mutate(good_row("classify", rng), rng) for _ in range(count)))
    physical = path.read_bytes().rstrip(b" \t\r\n").split(b"\n")
    card = clean([str(path)], out, [Repair(), Pii(), Dedup()], columns=["text"], workers=2).card
    parts = {
        name: [json.loads(line) for line in (out / f"{name}.jsonl").read_bytes().splitlines()]
        for name in ("data", "removed", "quarantine", "changed")
    }
    lost = {row["line"] for name in ("removed", "quarantine") for row in parts[name]}
    assert len(physical) == card.rows_in == card.rows_kept + card.rows_dropped + card.rows_quarantined
    assert len(lost) == card.rows_dropped + card.rows_quarantined and len(parts["data"]) == card.rows_kept > 0
    kept = [number for number in range(1, len(physical) + 1) if number not in lost]
    changed = {row["line"] for row in parts["changed"]}
    for number, row in zip(kept, parts["data"], strict=True):
        assert (row == json.loads(physical[number - 1])) == (number not in changed)


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "shift_jis"])
@pytest.mark.parametrize("count", ROWS)
def test_mutated_rows_in_other_encodings(tmp_path: Path, encoding: str, count: int) -> None:
    """What comes out is what comes out of the same text in UTF-8."""
    rng = random.Random(count)
    rows = [mutate(good_row("classify", rng), rng).decode("utf-8", "ignore") for _ in range(count)]
    text = "\n".join(rows).encode(encoding, "ignore").decode(encoding)
    (tmp_path / "a.jsonl").write_bytes(text.encode(encoding))
    (tmp_path / "b.jsonl").write_bytes(text.removeprefix("\ufeff").encode("utf-8"))
    one = read_source(FileSource(path="a.jsonl", encoding=encoding), tmp_path)
    other = read_source(FileSource(path="b.jsonl"), tmp_path)
    assert [(row.values, row.origin.line) for row in one.rows] == [(row.values, row.origin.line) for row in other.rows]
    assert [(bad.rule, bad.origin.line) for bad in one.quarantined] == [
        (bad.rule, bad.origin.line) for bad in other.quarantined
    ]


@pytest.mark.parametrize("count", TABLES)
def test_mutated_tables(tmp_path: Path, count: int) -> None:
    rng = random.Random(11)
    for case in range(count):
        lines = [b"text,label"]
        for _ in range(TABLE_ROWS):
            row = good_row("classify", rng)
            line = f'"{row["text"]}",{row["label"]}'.encode()
            lines.append(mutate_bytes(line, rng) if rng.random() < 0.3 else line)
        path = tmp_path / f"{case}.csv"
        path.write_bytes(b"\n".join(lines) + b"\n")
        found = read_source(FileSource(path=path.name), tmp_path)
        assert found.rows_in == len(found.rows) + len(found.quarantined)
        covered = {row.origin.line for row in found.quarantined}
        for row in found.rows:
            assert row.origin.line not in covered
            assert set(row.values) == {"text", "label"}


def mutate_bytes(line: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(line))
    return line[:place] + rng.choice(INSERTS) + line[place + rng.randrange(3) :]


def test_random_bytes_never_crash(tmp_path: Path) -> None:
    rng = random.Random(3)
    for ending in ("jsonl", "json", "csv", "tsv", "txt", "parquet", "jsonl.gz", "jsonl.zst", "md", "docx", "pdf", "bin"):
        for case in range(25):
            path = tmp_path / f"{case}.{ending}"
            path.write_bytes(rng.randbytes(rng.randrange(400)))
            try:
                found = read_source(FileSource(path=path.name), tmp_path)
            except DataError as error:
                assert path.name in str(error)
            else:
                assert found.rows_in == len(found.rows) + len(found.quarantined) > 0
