"""PDF files as rows: one file, one row, its pages joined.

PDF is a program more than a text, and strangers write it: it is read in a child process with a limit of memory and of time for
each page, so that a file that loops or swells is one bad row.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from uplift.core.errors import UsageError
from uplift.core.values import Origin
from uplift.data.optional import EXTRA
from uplift.data.plain_text import document_row
from uplift.data.rows import BadRow, Row, RowProblem, bad_row

PAGE_SECONDS = 60.0
"""Longest wait for a page."""
BETWEEN_PAGES = "\n\n"


def read_pdf(path: Path, display: str) -> Iterator[Row | BadRow]:
    """The file as one row with ``pages`` (their number) and its ``title``.

    Or a bad row: ``pdf`` (damaged or cut), ``encrypted``, ``no_text`` (a scan), ``too_long``, ``timeout``, ``memory``.
    """
    try:
        yield _document(path, display)
    except RowProblem as problem:
        yield bad_row(Origin(display, 1), problem, b"")


def _document(path: Path, display: str) -> Row:
    texts: list[str] = []
    columns: dict[str, Any] = {}
    for message in _child().ask(path):
        if "problem" in message:
            raise RowProblem(message["problem"], message["detail"])
        if "text" in message:
            texts.append(message["text"].strip())
        else:
            columns = {"pages": message["pages"], "title": message["title"]}
    if not any(texts):
        raise RowProblem("no_text", f"none of its {len(texts)} pages holds text; a scan must go through text recognition first")
    return document_row(BETWEEN_PAGES.join(text for text in texts if text), columns, display)


# -- the child process -------------------------------------------------------------------------------------------------
class _Child:
    """One process that reads file after file; a thread takes its answers, so that waiting for them can end."""

    def __init__(self) -> None:
        if importlib.util.find_spec("pypdf") is None:
            raise UsageError("reading PDF files needs pypdf, which is not installed", fix=EXTRA)
        self.owner = os.getpid()
        program = str(Path(__file__).with_name("pdf_pages.py"))
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        # -P: the folder of the program is no place to import from.
        self._process = subprocess.Popen([sys.executable, "-P", program], **pipes)
        self._answers: queue.Queue[bytes] = queue.Queue(maxsize=64)
        self._taker = threading.Thread(target=self._take, daemon=True)
        self._taker.start()

    def ask(self, path: Path) -> Iterator[dict[str, Any]]:
        """The messages about a file, up to its end; a process that dies or is silent for too long is a problem of the file."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: the next answer says so
            self._process.stdin.write(json.dumps(str(path.absolute())).encode() + b"\n")
            self._process.stdin.flush()
        while True:
            message = self._next()
            if "end" in message:
                return
            yield message
            if "problem" in message:
                return

    def stop(self) -> None:
        """End the process and the thread."""
        self._process.kill()
        self._process.wait()
        while self._taker.is_alive():
            with suppress(queue.Empty):
                self._answers.get(timeout=0.01)

    def _next(self) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=PAGE_SECONDS)
        except queue.Empty:
            _stop()
            return {"problem": "timeout", "detail": f"a page takes longer than {PAGE_SECONDS:g} s"}
        if not line:
            _stop()
            return {"problem": "pdf", "detail": "damaged: reading it ended the process that read it"}
        message: dict[str, Any] = json.loads(line)
        return message

    def _take(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(b"")


_children: list[_Child] = []
"""The running child of this process, if any."""


def _child() -> _Child:
    if not _children or _children[0].owner != os.getpid():  # after a fork it is the parent's
        _children[:] = [_Child()]
    return _children[0]


@atexit.register
def _stop() -> None:
    """End the child; the next file starts another."""
    for child in _children:
        if child.owner == os.getpid():
            child.stop()
    _children.clear()
