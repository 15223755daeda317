"""Child process of ``uplift.data.pdf``: the pages of the PDF files named on standard input, as JSON lines. Imports no Uplift.

For each file: ``{"pages": n, "title": ...}``, one ``{"text": ...}`` for each page, then ``{"end": true}``; or
``{"problem": rule, "detail": ...}`` at any point.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import pypdf
from pypdf import filters
from pypdf.errors import DependencyError, FileNotDecryptedError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

MEMORY = 2 * 2**30
"""Bytes of address space for this process."""
MOST_PAGES = 100_000
TEXT_CAP = 16 * 2**20
"""Longest text in characters."""
STREAM_CAP = 64 * 2**20
"""Largest stream in bytes, unpacked."""
ALARM = 120
"""Seconds after which this process ends itself when a page is not done: nobody may be left to end it."""
LOST = ("not defined", "ignoring the stream", "skipping the entry", "Invalid stream", "Limiting to")
"""Words of the library's reader when it goes on without an object; whatever its filters warn of is a loss."""


def inflated(data: bytes) -> bytes:
    """Unpack a stream, as the library does, but for one thing: what is cut or fails its checksum is not text."""
    unpacking = zlib.decompressobj()
    content = unpacking.decompress(data, STREAM_CAP)
    if not unpacking.eof:
        raise zlib.error(
            f"a stream unpacks to more than {STREAM_CAP // 2**20} MiB" if unpacking.unconsumed_tail else "a stream is cut"
        )
    return content


class Losses(logging.Handler):
    """Keeps the first warning that says content may be missing."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.first = ""

    def emit(self, record: logging.LogRecord) -> None:
        """One warning of the library."""
        message = record.getMessage()
        if record.name == "pypdf.filters" or any(word in message for word in LOST):
            self.first = self.first or message


def main() -> None:
    """Answer until standard input ends."""
    _limit_memory()
    filters.decompress = inflated
    losses = Losses()
    logging.getLogger("pypdf").addHandler(losses)
    logging.getLogger("pypdf").propagate = False
    for line in sys.stdin:
        for message in answered(json.loads(line), losses):
            _alarm(ALARM)
            sys.stdout.write(json.dumps(message) + "\n")
            sys.stdout.flush()
        _alarm(0)


def answered(path: str, losses: Losses) -> Iterator[dict[str, Any]]:
    """The messages about one file; whatever goes wrong in it is a message too."""
    losses.first = ""
    _alarm(ALARM)
    try:
        with open(path, "rb") as stream:
            yield from pages(stream, losses)
    except (FileNotDecryptedError, DependencyError) as error:
        yield problem("encrypted", f"the file has a password, or a key that cannot be computed: {said(error)}")
    except MemoryError:
        yield problem("memory", f"reading it takes more than {MEMORY // 2**30} GiB")
    except RecursionError:
        yield problem("pdf", "damaged: its objects are nested without end")
    except Exception as error:
        yield problem("pdf", f"damaged, cut or no PDF file: {said(error)}")


def pages(stream: Any, losses: Losses) -> Iterator[dict[str, Any]]:
    """How many pages, then each."""
    reader = pypdf.PdfReader(stream)
    count = len(reader.pages)
    if count > MOST_PAGES:
        yield problem("too_long", f"it has {count} pages; at most {MOST_PAGES} are read")
        return
    yield {"pages": count, "title": title(reader)}
    size = 0
    for page in reader.pages:
        text = page.extract_text()
        size += len(text)
        if size > TEXT_CAP:
            yield problem("too_long", f"it holds more than {TEXT_CAP // 2**20} million characters")
            return
        if losses.first:
            yield problem("pdf", f"damaged: {losses.first}")
            return
        yield {"text": text}
    yield {"end": True}


def title(reader: pypdf.PdfReader) -> str | None:
    """What the file says it is called; this is decoration, so damage here is none."""
    try:
        found = reader.metadata.title if reader.metadata else None
    except Exception:
        return None
    return " ".join(found.split()) or None if isinstance(found, str) else None


def problem(rule: str, detail: str) -> dict[str, Any]:
    """The message that ends a file."""
    return {"problem": rule, "detail": detail[:300]}


def said(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _alarm(seconds: int) -> None:
    if hasattr(signal, "alarm"):  # not on Windows
        signal.alarm(seconds)


def _limit_memory() -> None:
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


if __name__ == "__main__":
    main()
