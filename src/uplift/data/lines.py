"""Bytes and lines of a plain or compressed file, never holding more than a cap: a line of any length costs no memory.

What is in another encoding becomes UTF-8 on the way; bytes that this encoding does not have become bytes that UTF-8 does not
have either, so that the row in which they stand is put aside.
"""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
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
WIDE_BOMS = (b"\xff\xfe", b"\xfe\xff")
"""What UTF-16 begins with."""
NO_TEXT = "\udcff"
"""Stands for bytes that the encoding of a file does not have."""
NO_TEXT_BYTES = NO_TEXT.encode("utf-8", "surrogatepass")
MARK_NO_TEXT = "uplift-no-text"


def _marked(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return NO_TEXT, error.end


codecs.register_error(MARK_NO_TEXT, _marked)


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


def read_lines(path: Path, display: str, encoding: str | None = None, *, cap: int = LINE_CAP) -> Iterator[Line]:
    """The lines of a plain or compressed file (by its ending ``.gz`` or ``.zst``) in UTF-8, without a byte order mark.

    ``encoding`` None: UTF-8, or UTF-16 where the file begins with its mark. Memory stays below ``cap`` plus a chunk whatever
    the file holds. Raises DataError named by ``display`` when the file cannot be read, is not what its ending says, or is cut
    or damaged inside.
    """
    number, held, dropping = 1, bytearray(), False
    for chunk in in_utf8(_chunks(path, display), encoding):
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


def read_all(path: Path, display: str, cap: int, encoding: str | None = None) -> bytes:
    """The whole content of a file that must be read at once, in UTF-8. Raises DataError when it exceeds ``cap`` bytes."""
    content = _joined(in_utf8(_chunks(path, display), encoding), cap)
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


def in_utf8(chunks: Iterable[bytes], encoding: str | None = None) -> Iterator[bytes]:
    """The content as UTF-8 without its byte order mark.

    ``encoding`` None: UTF-8, or UTF-16 where its mark says so and zero bytes, which other text has none of, agree.
    """
    rest = iter(chunks)
    first = next(rest, b"")
    encoding = encoding or ("utf-16" if first.startswith(WIDE_BOMS) and b"\0" in first else "utf-8")
    if codecs.lookup(encoding).name == "utf-8":
        yield first.removeprefix(UTF8_BOM)
        yield from rest
        return
    decoder = codecs.getincrementaldecoder(encoding)(MARK_NO_TEXT)
    begun = False
    for chunk in chain([first], rest, [b""]):
        text = decoder.decode(chunk, final=not chunk)
        if text and not begun:
            text, begun = text.removeprefix("\ufeff"), True
        yield text.encode("utf-8", "surrogatepass")


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
