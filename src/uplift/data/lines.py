"""Bytes and lines of a plain or compressed file, never holding more than a cap: a line of any length costs no memory."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import pyarrow as pa

from uplift.core.errors import DataError, Place

LINE_CAP = 16 * 2**20
"""Longest line in bytes that is held; a longer one is put aside unread."""
CHUNK = 2**18
KEPT_OF_LONG = 200
UTF8_BOM = b"\xef\xbb\xbf"
COMPRESSED = (".gz", ".zst")
"""Endings of files that are unpacked while they are read. Zstandard windows above 128 MiB are refused by the library."""
WIDE_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


@dataclass(frozen=True)
class Line:
    """One physical line without its line feed. ``content`` is its beginning only when ``too_long``; ``last``: the file ends
    here without a line feed."""

    number: int
    content: bytes
    too_long: bool = False
    last: bool = False

    @property
    def blank(self) -> bool:
        """Nothing but white space."""
        return not self.too_long and not self.content.strip()


def read_lines(path: Path, display: str, cap: int = LINE_CAP) -> Iterator[Line]:
    """The lines of a plain or compressed file (by its ending ``.gz`` or ``.zst``), a UTF-8 byte order mark removed.

    Memory stays below ``cap`` plus a chunk whatever the file holds. Raises DataError named by ``display`` when the file
    cannot be read, is not what its ending says, is cut or damaged inside, or is UTF-16.
    """
    number, held, dropping = 1, bytearray(), False
    for chunk in _marked_chunks(path, display):
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            held += chunk[start:end]
            yield _line(number, held, cap, dropping, last=False)
            number, held, dropping, start = number + 1, bytearray(), False, end + 1
        held += chunk[start:]
        if len(held) > cap:
            dropping = True
            del held[KEPT_OF_LONG:]
    if held or dropping:
        yield _line(number, held, cap, dropping, last=True)


def _line(number: int, held: bytearray, cap: int, dropping: bool, *, last: bool) -> Line:
    if dropping or len(held) > cap:
        return Line(number, bytes(held[:KEPT_OF_LONG]), too_long=True, last=last)
    return Line(number, bytes(held), last=last)


def read_all(path: Path, display: str, cap: int) -> bytes:
    """The whole content of a file that must be read at once. Raises DataError when it exceeds ``cap`` bytes."""
    content = _joined(_marked_chunks(path, display), cap)
    if content is None:
        why = f"it is larger than {cap // 2**20} MiB and this format can only be read whole"
        raise DataError("the file is too large", where=Place(display), why=why, fix="convert it to JSON lines (.jsonl)")
    return content


def read_up_to(path: Path, display: str, cap: int) -> bytes | None:
    """The unpacked bytes of a file as they are, byte order marks too; None when there are more than ``cap``."""
    return _joined(_chunks(path, display), cap)


def _joined(chunks: Iterator[bytes], cap: int) -> bytes | None:
    content = bytearray()
    for chunk in chunks:
        content += chunk
        if len(content) > cap:
            return None
    return bytes(content)


def _marked_chunks(path: Path, display: str) -> Iterator[bytes]:
    """The content as UTF-8 without its byte order mark. Raises DataError for the mark of another encoding."""
    first = True
    for chunk in _chunks(path, display):
        yield _without_mark(chunk, display) if first else chunk
        first = False


def _chunks(path: Path, display: str) -> Iterator[bytes]:
    try:
        with open_bytes(path) as stream:
            while chunk := stream.read(CHUNK):
                yield chunk
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(display, str(error)) from error
    except OSError as error:
        if error.errno is None and path.suffix.lower() == ".zst":  # Arrow's word for whatever is wrong with the stream
            raise _damaged(display, str(error)) from error
        raise DataError("the file cannot be read", where=Place(display), why=error.strerror or str(error)) from error


def _damaged(display: str, why: str) -> DataError:
    fix = "copy or download it again; rows after the damage cannot be listed"
    return DataError("the compressed file is damaged or cut", where=Place(display), why=why, fix=fix)


def open_bytes(path: Path) -> IO[bytes]:
    """The bytes of a file, unpacked when its ending is ``.gz`` or ``.zst``."""
    ending = path.suffix.lower()
    if ending == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if ending == ".zst":
        return cast(IO[bytes], pa.input_stream(str(path), compression="zstd"))
    return open(path, "rb")


def _without_mark(chunk: bytes, display: str) -> bytes:
    for mark, name in WIDE_BOMS.items():
        if chunk.startswith(mark):
            raise DataError(f"the file is {name}, not UTF-8", where=Place(display), fix="convert it to UTF-8")
    return chunk.removeprefix(UTF8_BOM)
