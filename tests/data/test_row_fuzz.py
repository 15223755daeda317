"""2,000 broken rows: no crash, nothing lost, nothing changed in silence."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from uplift.core.errors import DataError
from uplift.core.recipe import ChatTask, ClassifyTask, FileSource, Task, TextTask
from uplift.data.formats import to_samples
from uplift.data.sources import read_source

ROWS = 2000
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


@pytest.mark.parametrize(
    ("kind", "task"),
    [("classify", ClassifyTask()), ("classify", TextTask()), ("chat", ChatTask(system="Be brief."))],
    ids=["classify", "text", "chat"],
)
def test_mutated_json_rows(tmp_path: Path, kind: str, task: Task) -> None:
    rng = random.Random(7)
    lines = [mutate(good_row(kind, rng), rng) for _ in range(ROWS)]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    physical = path.read_bytes().split(b"\n")
    while physical and not physical[-1].strip():
        physical.pop()

    found = read_source(FileSource(path="rows.jsonl"), tmp_path)
    assert found.rows_in == len(found.rows) + len(found.quarantined) == len(physical)
    for row in found.rows:
        assert dict(row.values) == json.loads(physical[row.origin.line - 1]), row.origin
    converted = to_samples(found.rows, task, "language")
    assert len(converted.samples) + len(converted.quarantined) == len(found.rows)
    bad = [*found.quarantined, *converted.quarantined]
    assert len({row.origin.line for row in bad} | {sample.origin.line for sample in converted.samples}) == len(physical)
    assert all(row.rule and row.detail and row.excerpt.isprintable() for row in bad)
    assert 0.2 * ROWS < len(converted.samples) < 0.9 * ROWS
    for sample in converted.samples:
        values = json.loads(physical[sample.origin.line - 1])
        told = [m.content for m in sample.messages[1:]] if kind == "chat" else [sample.extras.get("content", sample.text)]
        expected = [turn["content"] for turn in values["messages"]] if kind == "chat" else [values["text"]]
        if kind == "chat" and values["messages"][0]["role"] == "system":
            expected = expected[1:]
        assert told == expected


def test_mutated_tables(tmp_path: Path) -> None:
    rng = random.Random(11)
    for case in range(60):
        lines = [b"text,label"]
        for _ in range(40):
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
