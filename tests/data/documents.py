"""Documents written by hand, byte by byte, so that tests can break them where they like."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
PACKAGE = "http://schemas.openxmlformats.org/package/2006/relationships"
MAIN = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
RELATIONS = (
    f'<?xml version="1.0"?><Relationships xmlns="{PACKAGE}">'
    f'<Relationship Id="r1" Type="{MAIN}" Target="word/document.xml"/></Relationships>'
)


def pdf(pages: Sequence[str], *, packed: bool = True, title: str = "", more: Mapping[str, bytes] | None = None) -> bytes:
    """A PDF with a line of text for each line of a page. ``more``: name -> form that the pages can draw with ``/name Do``."""
    forms = more or {}
    first_form = 5 + 2 * len(pages)
    names = " ".join(f"/{name} {first_form + index} 0 R" for index, name in enumerate(forms))
    resources = f"/Resources << /Font << /F1 3 0 R >> /XObject << {names} >> >>"
    kids = " ".join(f"{5 + 2 * index} 0 R" for index in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        f"<< /Title ({title}) >>".encode(),
    ]
    for index, page in enumerate(pages):
        lines = " ".join(f"({line}) Tj 0 -14 Td" for line in page.split("\n"))
        content = page.encode() if page.startswith("q ") else f"BT /F1 12 Tf 72 700 Td {lines} ET".encode()
        parent = f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] {resources} /Contents {6 + 2 * index} 0 R >>"
        objects += [parent.encode(), _stream(content, "", packed)]
    objects += [_stream(form, f"/Type /XObject /Subtype /Form /BBox [0 0 9 9] {resources}", packed) for form in forms.values()]
    return _file(objects)


def _stream(content: bytes, entries: str, packed: bool) -> bytes:
    content = zlib.compress(content) if packed else content
    filters = "/Filter /FlateDecode" if packed else ""
    return f"<< {entries} {filters} /Length {len(content)} >>\nstream\n".encode() + content + b"\nendstream"


def _file(objects: Sequence[bytes]) -> bytes:
    content, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(content))
        content += b"%d 0 obj\n" % number + body + b"\nendobj\n"
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    start, count = len(content), len(objects) + 1
    content += b"xref\n0 %d\n0000000000 65535 f \n" % count + table
    return content + b"trailer\n<< /Size %d /Root 1 0 R /Info 4 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (count, start)


def paragraph(text: str) -> str:
    """A paragraph of WordprocessingML."""
    return f'<w:p><w:r><w:t xml:space="preserve">{escape(text)}</w:t></w:r></w:p>'


def docx(body: str, *, prolog: str = "", parts: Mapping[str, bytes] | None = None, title: str = "") -> bytes:
    """A DOCX file around the XML of a body."""
    document = f'<?xml version="1.0"?>{prolog}<w:document xmlns:w="{WORD}"><w:body>{body}</w:body></w:document>'
    core = f'<c xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>{escape(title)}</dc:title></c>'
    files = {"[Content_Types].xml": b"<Types/>", "_rels/.rels": RELATIONS.encode(), "word/document.xml": document.encode()}
    files |= {"docProps/core.xml": core.encode()} if title else {}
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (files | dict(parts or {})).items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return result.getvalue()


def page(text: str, head: str = "<title>Title</title>") -> bytes:
    """A web page."""
    return f"<!doctype html><html><head>{head}</head><body><main><p>{text}</p></main></body></html>".encode()
