"""Compressed files: the same rows as unpacked, cut ones named, and no file makes memory grow."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from uplift.core.errors import DataError
from uplift.core.source_section import FileSource
from uplift.data.sources import read_source

ROWS = [{"text": f"row {index} é", "label": index} for index in range(3000)]


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


PACKERS: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "zst": zstd, "ZST": zstd}
CONTENTS = {
    "jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    "json": json.dumps(ROWS),
    "csv": "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in ROWS),
    "tsv": "text\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in ROWS),
    "txt": "".join(f"{row['text']}\n\n" for row in ROWS),
    "md": "---\nlabel: 7\n---\n" + "".join(f"{row['text']}\n" for row in ROWS),
}


@pytest.mark.parametrize("packing", list(PACKERS))
@pytest.mark.parametrize("ending", list(CONTENTS))
def test_packed_files_give_the_rows_of_the_unpacked_ones(tmp_path: Path, ending: str, packing: str) -> None:
    content = CONTENTS[ending].encode()
    (tmp_path / f"a.{ending}").write_bytes(content)
    (tmp_path / f"b.{ending}.{packing}").write_bytes(PACKERS[packing](content))
    plain = read_source(FileSource(path=f"a.{ending}"), tmp_path)
    packed = read_source(FileSource(path=f"b.{ending}.{packing}"), tmp_path)
    assert [row.values for row in packed.rows] == [row.values for row in plain.rows]
    assert packed.format == plain.format and not packed.quarantined and packed.sha256 != plain.sha256


@pytest.mark.parametrize("packing", ["gz", "zst"])
def test_cut_and_foreign_streams_are_named(tmp_path: Path, packing: str) -> None:
    whole = PACKERS[packing](CONTENTS["jsonl"].encode())
    path = tmp_path / f"a.jsonl.{packing}"
    for content in (*(whole[:size] for size in (1, 3, 10, len(whole) // 2, len(whole) - 1)), b"plain text", whole + b"junk"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"a\.jsonl\.{packing}: the compressed file is damaged or cut"):
            read_source(FileSource(path=path.name), tmp_path)
    path.write_bytes(whole + whole)  # streams may follow each other
    assert read_source(FileSource(path=path.name), tmp_path).rows_in == 2 * len(ROWS)


def test_a_compressed_file_must_say_so(tmp_path: Path) -> None:
    for packing, magic in (("gz", "gz"), ("zst", "zst")):
        (tmp_path / "a").write_bytes(PACKERS[packing](b'{"text": "a"}\n'))
        with pytest.raises(DataError, match=f"its name does not end with .{magic}"):
            read_source(FileSource(path="a"), tmp_path)


def test_zstandard_windows_are_bounded(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    wide = zstandard.ZstdCompressionParameters(window_log=30, enable_ldm=True)
    stream = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    (tmp_path / "a.txt.zst").write_bytes(stream.compress(b"a" * 2**22) + stream.flush())
    with pytest.raises(DataError, match="too much memory"):
        read_source(FileSource(path="a.txt.zst"), tmp_path)


PEAK = r"""
import re, sys
from pathlib import Path
from uplift.core.source_section import FileSource
from uplift.data.rows import BadRow
from uplift.data.sources import stream_source
rules, rows = [], 0
for item in stream_source(FileSource(path=sys.argv[1]), Path()):
    if isinstance(item, BadRow):
        rules.append(item.rule)
    else:
        rows += 1
# Not getrusage: there a child begins with the peak of its parent.
peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024
print(rows, len(rules), *set(rules) or "-", peak)
"""
MEGABYTE = b"a" * 2**20


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system must tell the peak of a process")
@pytest.mark.parametrize(
    ("name", "rows", "bad", "rule"),
    [
        ("line.jsonl", 2, 1, "too_long"),
        ("line.csv", 2, 1, "too_long"),
        ("line.txt", 2, 1, "too_long"),
        ("line.md", 0, 1, "too_long"),
        ("line.html", 0, 1, "too_long"),
        ("line.jsonl.gz", 2, 1, "too_long"),
        ("line.jsonl.zst", 2, 1, "too_long"),
        ("many.jsonl.zst", 1_000_000, 0, "-"),
    ],
)
def test_memory_stays_small_whatever_a_file_holds(tmp_path: Path, name: str, rows: int, bad: int, rule: str) -> None:
    stem, _, ending = name.partition(".")
    row = {"csv": b"a,b\n", "txt": b"a b\n\n"}.get(ending, b'{"text": "a"}\n')
    end = b"\n\n" if ending == "txt" else b"\n"
    header = b"text,label\n" if ending == "csv" else b""
    with open(tmp_path / "plain", "wb") as file:
        file.write(header + row)
        if stem == "many":
            file.writelines([row] * 999_999)
        else:
            file.writelines([MEGABYTE] * 100)
            file.write(end + row)
    packing = name.rpartition(".")[2]
    path = tmp_path / name
    with open(tmp_path / "plain", "rb") as plain, open(path, "wb") as out:
        if packing == "gz":
            with gzip.open(out, "wb", 1) as packed:
                packed.writelines(iter(lambda: plain.read(2**20), b""))
        elif packing == "zst":
            with pa.CompressedOutputStream(pa.PythonFile(out, "w"), "zstd") as packed:
                for chunk in iter(lambda: plain.read(2**20), b""):
                    packed.write(chunk)
        else:
            out.writelines(iter(lambda: plain.read(2**20), b""))
    done = subprocess.run([sys.executable, "-c", PEAK, name], cwd=tmp_path, capture_output=True, text=True, check=True)
    good, put_aside, told, peak = done.stdout.split()
    print(name, peak, "MiB")
    assert (int(good), int(put_aside), told) == (rows, bad, rule)
    assert int(peak) <= 200
