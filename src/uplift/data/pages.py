"""Web pages as rows: one page, one row, with its ``title`` and the ``url`` that it names as its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uplift.core.values import Origin
from uplift.data.clean.html import page_text
from uplift.data.lines import read_up_to
from uplift.data.optional import optional
from uplift.data.plain_text import document_row
from uplift.data.rows import BadRow, Row, RowProblem, bad_row

PAGE_CAP = 8 * 2**20
"""Largest page in bytes; a parsed page takes ten times its size."""
MARKS = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}
DECLARED = re.compile(
    rb"""<meta[^<>]{0,200}?charset\s{0,9}=\s{0,9}["']?([A-Za-z0-9_.:-]{1,40})|<\?xml[^<>]{0,99}?encoding=["']([A-Za-z0-9_.:-]{1,40})""",
    re.IGNORECASE,
)
DECLARED_WITHIN = 4096
"""Bytes in which a page must say its encoding."""
HEAD_CAP = 2**18
"""Characters in which a page must say its title and its address."""
BROWSERS = {"iso-8859-1": "windows-1252", "latin1": "windows-1252", "ascii": "windows-1252", "us-ascii": "windows-1252"}
"""Names that every browser takes for another, wider table."""


def read_page(path: Path, display: str, encoding: str | None = None) -> Iterator[Row | BadRow]:
    """The page as one row, or as a bad row: too large, not in ``encoding`` (None: that which it says), without text."""
    content = read_up_to(path, display, PAGE_CAP)
    try:
        if content is None:
            raise RowProblem("too_long", f"the page is larger than {PAGE_CAP // 2**20} MiB")
        markup = decoded(content, encoding)
        yield document_row(page_text(markup), page_columns(markup), display)
    except RowProblem as problem:
        yield bad_row(Origin(display, 1), problem, content or b"")


def decoded(content: bytes, encoding: str | None = None) -> str:
    """The page as text: in ``encoding``, or by its byte order mark, by what it says, or else as UTF-8.

    Raises RowProblem; nothing is guessed.
    """
    if encoding is not None:
        return _decoded(content, encoding, "the source").removeprefix("\ufeff")
    for mark, encoding in MARKS.items():
        if content.startswith(mark):
            return _decoded(content[len(mark) :], encoding, "its byte order mark")
    said = DECLARED.search(content[:DECLARED_WITHIN])
    name = (said[1] or said[2]).decode("ascii").lower() if said else ""
    if name.startswith("utf-16"):  # whoever could read this far was reading bytes
        name = ""
    return _decoded(content, BROWSERS.get(name, name), "the page") if name else _decoded(content, "utf-8", "")


def _decoded(content: bytes, encoding: str, says: str) -> str:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        why = f"{says} says {encoding}" if says else "the page names no encoding"
        raise RowProblem("utf8", f"{why}, and this is not {encoding}: {error.reason}", error.start + 1) from error
    except LookupError as error:
        raise RowProblem("encoding", f"{says} says {encoding}, which is not known") from error


def page_columns(markup: str) -> dict[str, Any]:
    """``title`` and ``url`` where the page has them."""
    with optional("reading web pages"):
        from lxml import etree, html
    try:
        tree = html.document_fromstring(markup[:HEAD_CAP].encode("utf-8", "replace"), parser=html.HTMLParser(encoding="utf-8"))
    except (etree.LxmlError, ValueError):  # nothing that is a page: its text is what counts
        return {}
    title = " ".join((tree.findtext(".//head//title") or tree.findtext(".//title") or "").split())
    address = tree.xpath("string((//link[@rel='canonical']/@href | //meta[@property='og:url']/@content)[1])")
    return {"title": title or None, "url": str(address).strip() or None}
