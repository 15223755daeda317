"""Documents as rows: web pages, DOCX, PDF and Markdown give their text, or say why not; nothing runs away."""

from __future__ import annotations

import gzip
import io
import os
import zipfile
from pathlib import Path

import pytest
from tests.data.documents import docx, page, paragraph, pdf

from uplift.core.errors import DataError, UsageError
from uplift.core.source_section import FileSource
from uplift.data import office, pdf as pdf_module
from uplift.data.optional import optional
from uplift.data.rows import BadRow, Row
from uplift.data.sources import read_source, stream_source


def read(folder: Path, name: str, content: bytes, use: str = "auto") -> Row | BadRow:
    """The one row of a file."""
    (folder / name).write_bytes(content)
    found = read_source(FileSource.model_validate({"use": use, "path": name}), folder)
    assert found.rows_in == 1
    return [*found.rows, *found.quarantined][0]


def values(folder: Path, name: str, content: bytes, use: str = "auto") -> dict[str, object]:
    row = read(folder, name, content, use)
    assert isinstance(row, Row), row
    return dict(row.values)


def problem(folder: Path, name: str, content: bytes, use: str = "auto") -> BadRow:
    row = read(folder, name, content, use)
    assert isinstance(row, BadRow), row
    assert row.origin.file == name and row.origin.line == 1
    return row


# -- Markdown ----------------------------------------------------------------------------------------------------------
def test_front_matter_becomes_columns(tmp_path: Path) -> None:
    text = b"---\r\ntitle: A note\ntags: [a, b]\ndate: 2024-01-31\ndraft: no\nrank: 010\n---\n\n# Head\n\nbody\n"
    expected = {"title": "A note", "tags": ["a", "b"], "date": "2024-01-31", "draft": "no", "rank": 10}
    assert values(tmp_path, "a.md", text) == {"text": "# Head\n\nbody", **expected}


@pytest.mark.parametrize(
    "text",
    [
        "---\n\n# Head\n\n---\nbody",
        "---\nno end: of it\n",
        "--- \na: b\n---\nx",
        "# Head\n---\na: b\n---",
        "---\nwords\n---\nx",
    ],
)
def test_a_rule_drawn_in_markdown_is_no_front_matter(tmp_path: Path, text: str) -> None:
    assert values(tmp_path, "a.md", text.encode()) == {"text": text.removesuffix("\n")}


@pytest.mark.parametrize("head", ["a: [b", "a: 1\na: 2", "text: taken", "a: !!python/object:os.system x", "a: &x [*x]"])
def test_front_matter_that_cannot_be_read_is_put_aside(tmp_path: Path, head: str) -> None:
    assert problem(tmp_path, "a.md", f"---\n{head}\n---\nbody".encode()).rule == "front_matter"


def test_long_front_matter_costs_no_time(tmp_path: Path) -> None:
    text = "---\n" + "a: b\n" * 40_000
    assert values(tmp_path, "a.md", text.encode()) == {"text": text.removesuffix("\n")}


# -- web pages ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def pages() -> None:
    pytest.importorskip("lxml_html_clean")


@pytest.mark.usefixtures("pages")
def test_pages_have_text_title_and_their_own_address(tmp_path: Path) -> None:
    head = '<title>\n Films &amp; more</title><link rel="canonical" href="https://a.example/b">'
    expected = {"text": "It was good.", "title": "Films & more", "url": "https://a.example/b"}
    assert values(tmp_path, "a.html", page("It was good.", head)) == expected
    assert values(tmp_path, "a.htm.gz", gzip.compress(page("It was good.", head))) == expected
    assert values(tmp_path, "b", page("It was good.", head)) == expected
    og = '<meta property="og:url" content="https://a.example/c">'
    assert values(tmp_path, "c.html", page("It was good.", og)) == {"text": "It was good.", "url": "https://a.example/c"}


@pytest.mark.usefixtures("pages")
@pytest.mark.parametrize(
    ("head", "encoding"),
    [
        ("<meta charset=windows-1252>", "cp1252"),
        ('<meta http-equiv="Content-Type" content="text/html; charset=iso-8859-1">', "cp1252"),
        ("<meta charset='shift_jis'>", "shift_jis"),
        ("", "utf-8"),
        ("", "utf-8-sig"),
        ("<meta charset=latin1>", "utf-16"),
    ],
)
def test_pages_are_read_in_the_encoding_they_say(tmp_path: Path, head: str, encoding: str) -> None:
    text = "映画は良い" if encoding == "shift_jis" else "Café — “good”"
    assert values(tmp_path, "a.html", page(text, head).decode().encode(encoding))["text"] == text


@pytest.mark.usefixtures("pages")
@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"<p>caf\xe9 au lait", "utf8"),
        (b"<meta charset=shift_jis><p>\x81", "utf8"),
        (b"<meta charset=klingon><p>x", "encoding"),
        (b"<meta charset=hex><p>x", "encoding"),
        (b"<p>", "empty_text"),
        (b"", "empty_text"),
        (b"<p>" + b"x" * (8 * 2**20), "too_long"),
    ],
)
def test_pages_that_cannot_be_read_are_put_aside(tmp_path: Path, content: bytes, rule: str) -> None:
    assert problem(tmp_path, "a.html", content).rule == rule


# -- DOCX --------------------------------------------------------------------------------------------------------------
def cell(text: str) -> str:
    return f"<w:tc>{text}</w:tc>"


def test_docx_text_comes_in_order(tmp_path: Path) -> None:
    first, second = cell(paragraph("a")) + cell(paragraph("b") + paragraph("c")), cell(paragraph("d")) + cell("")
    table = f"<w:tbl><w:tr>{first}</w:tr><w:tr>{second}</w:tr></w:tbl>"
    body = paragraph("Head") + "<w:p><w:r><w:t>one</w:t><w:tab/><w:t>two</w:t><w:br/><w:t>three</w:t></w:r></w:p>" + table
    content = docx(body + "<w:p/>" + paragraph("end & so"), title="My  title")
    assert values(tmp_path, "a.docx", content) == {
        "text": "Head\n\none\ttwo\nthree\n\na | b c\nd | \n\nend & so",
        "title": "My title",
    }
    assert values(tmp_path, "noending", content)["title"] == "My title"


def test_docx_text_that_other_readers_lose(tmp_path: Path) -> None:
    run = "<w:r><w:t>{}</w:t></w:r>"
    tracked = f"<w:p>{run.format('kept ')}<w:ins>{run.format('put in')}</w:ins><w:del>{run.format('taken out')}</w:del></w:p>"
    control = f"<w:sdt><w:sdtContent>{paragraph('in a control')}</w:sdtContent></w:sdt>"
    box = f"<w:p><w:r><w:txbxContent>{paragraph('in a box')}</w:txbxContent><w:t>around it</w:t></w:r></w:p>"
    nested = (
        f"<w:tbl><w:tr>{cell(f'<w:tbl><w:tr>{cell(paragraph(chr(120)))}</w:tr></w:tbl>')}{cell(paragraph('y'))}</w:tr></w:tbl>"
    )
    found = values(tmp_path, "a.docx", docx(tracked + control + box + nested))
    assert found == {"text": "kept put in\n\nin a control\n\nin a box\n\naround it\n\nx | y"}


def test_docx_files_of_another_writer(tmp_path: Path) -> None:
    writer = pytest.importorskip("docx").Document()
    writer.core_properties.title = "T"
    writer.add_heading("Head", 1)
    writer.add_paragraph("Über 🙂", style="List Bullet")
    table = writer.add_table(1, 2)
    table.cell(0, 0).text, table.cell(0, 1).text = "a", "b"
    content = io.BytesIO()
    writer.save(content)
    assert values(tmp_path, "a.docx", content.getvalue()) == {"text": "Head\n\nÜber 🙂\n\na | b", "title": "T"}


def test_broken_docx_files_are_put_aside(tmp_path: Path) -> None:
    whole = docx(paragraph("text") * 500)
    for size in (0, 3, 100, len(whole) // 2, len(whole) - 1):
        assert problem(tmp_path, "a.docx", whole[:size]).rule == "docx"
    assert problem(tmp_path, "a.docx", docx("<w:p>")).rule == "docx"
    assert problem(tmp_path, "a.docx", docx("")).rule == "empty_text"
    assert "password" in problem(tmp_path, "a.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"x" * 600).detail
    assert "ZIP" not in problem(tmp_path, "a.docx", pdf(["x"])).detail


LAUGHS = '<!DOCTYPE x [<!ENTITY a "ha">' + "".join(
    f'<!ENTITY {new} "{f"&{old};" * 10}">' for old, new in zip("abcdefgh", "bcdefghi", strict=True)
) + "]>"  # fmt: skip
FETCH = '<!DOCTYPE x [<!ENTITY i SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize("prolog", [LAUGHS, FETCH, '<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd">'])
def test_docx_entities_are_neither_expanded_nor_fetched(tmp_path: Path, prolog: str) -> None:
    row = problem(tmp_path, "a.docx", docx("<w:p><w:r><w:t>&i;</w:t></w:r></w:p>", prolog=prolog))
    assert row.rule == "docx" and "root:" not in row.detail


def test_docx_bombs_are_not_unpacked(tmp_path: Path) -> None:
    huge = b"<a>" + b" " * (80 * 2**20)
    assert problem(tmp_path, "a.docx", docx("", parts={"word/document.xml": huge})).rule == "too_long"
    tight = b"<a>" + b" " * (30 * 2**20)
    assert problem(tmp_path, "a.docx", docx("", parts={"word/document.xml": tight})).rule == "bomb"
    assert problem(tmp_path, "a.docx", docx("", parts={"_rels/.rels": b" " * 2**21})).rule in ("too_long", "bomb")
    lying = bytearray(docx(paragraph("x" * 5000)))
    place = lying.index(b"PK\x01\x02", lying.index(b"word/document.xml")) - 1
    for at in [index for index in range(len(lying) - 4) if lying[index : index + 4] == b"PK\x01\x02" and index > place]:
        lying[at + 24 : at + 28] = (100).to_bytes(4, "little")
    assert problem(tmp_path, "a.docx", bytes(lying)).rule == "docx"
    # Pictures are never unpacked, whatever their size.
    assert values(tmp_path, "a.docx", docx(paragraph("x"), parts={"word/media/i.png": huge})) == {"text": "x"}


def test_docx_parts_made_to_be_slow_are_not_read_to_their_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "nested" in problem(tmp_path, "a.docx", docx("<w:p>" * 100_000)).detail
    long = "x y z " * 500_000  # one node of text: no event may cost more the longer it is
    assert values(tmp_path, "a.docx", docx(paragraph(long))) == {"text": long}
    monkeypatch.setattr(office, "MOST_ELEMENTS", 10**6)
    row = problem(tmp_path, "a.docx", docx("<w:p/><w:q/><w:p></w:p>" * 500_000))
    assert row.rule == "too_long" and "elements" in row.detail


def test_other_archives_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    with pytest.raises(DataError, match="it is a ZIP archive"):
        read_source(FileSource(path="a.zip"), tmp_path)


# -- PDF ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("packed", [True, False])
def test_pdf_pages_are_joined(tmp_path: Path, packed: bool) -> None:
    content = pdf(["One\ntwo", "", "Three"], packed=packed, title="A  film")
    assert values(tmp_path, "a.pdf", content) == {"text": "One\ntwo\n\nThree", "pages": 3, "title": "A film"}
    assert values(tmp_path, "noending", content)["pages"] == 3


def test_broken_pdf_files_are_put_aside(tmp_path: Path) -> None:
    whole = pdf(["One two three"] * 3)
    for size in (0, 4, 200, len(whole) // 2, len(whole) - 100):
        assert problem(tmp_path, "a.pdf", whole[:size]).rule == "pdf"
    assert problem(tmp_path, "a.pdf", docx("")).rule == "pdf"
    scan = problem(tmp_path, "a.pdf", pdf(["", ""]))
    assert scan.rule == "no_text" and "none of its 2 pages" in scan.detail


@pytest.mark.slow
def test_a_pdf_file_of_endless_text_is_put_aside(tmp_path: Path) -> None:
    assert problem(tmp_path, "a.pdf", pdf(["x" * 2**19] * 40)).rule == "too_long"


def test_a_flipped_bit_in_packed_text_is_found(tmp_path: Path) -> None:
    whole = pdf(["Hello world\nsecond line"])
    start = whole.index(b"stream\n") + 7
    end, found = whole.index(b"\nendstream"), 0
    for place in range(start, end):
        broken = bytearray(whole)
        broken[place] ^= 1 << place % 8
        row = read(tmp_path, "a.pdf", bytes(broken))
        # A bit that means nothing (the last byte may have spare ones) changes nothing.
        assert row.values["text"] == "Hello world\nsecond line" if isinstance(row, Row) else row.rule == "pdf", place
        found += isinstance(row, BadRow)
    assert found >= end - start - 2


def test_pdf_files_with_a_password_are_named(tmp_path: Path) -> None:
    pypdf = pytest.importorskip("pypdf")
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf(["secret"])))
    writer.encrypt("word", algorithm="RC4-128")
    content = io.BytesIO()
    writer.write(content)
    row = problem(tmp_path, "a.pdf", content.getvalue())
    assert row.rule == "encrypted" and "secret" not in row.detail


def test_pdf_pages_that_take_too_long_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = {f"X{level}": f"/X{level + 1} Do ".encode() * 20 for level in range(12)} | {"X12": b"BT (x) Tj ET"}
    assert values(tmp_path, "a.pdf", pdf(["a first one"]))["text"] == "a first one"  # the child is there and warm
    with monkeypatch.context() as patch:
        patch.setattr(pdf_module, "PAGE_SECONDS", 0.1)  # 20^12 draws, of which the library makes some seconds' worth
        row = problem(tmp_path, "b.pdf", pdf(["q /X0 Do Q"], more=draw))
    assert row.rule == "timeout"
    assert values(tmp_path, "c.pdf", pdf(["the next one"]))["text"] == "the next one"


def test_pdf_page_trees_that_loop_end(tmp_path: Path) -> None:
    whole = pdf(["x"])
    for old, new in (
        (b"/Kids [5 0 R]", b"/Kids [2 0 R]"),
        (b"/Contents 6 0 R", b"/Contents 5 0 R"),
        (b"/Pages 2 0 R", b"/Pages 1 0 R"),
    ):
        assert problem(tmp_path, "a.pdf", whole.replace(old, new)).rule in ("pdf", "no_text")


def test_a_reader_that_dies_is_one_bad_row(tmp_path: Path) -> None:
    assert values(tmp_path, "a.pdf", pdf(["x"]))["text"] == "x"
    pdf_module._children[0].stop()
    assert "ended the process" in problem(tmp_path, "a.pdf", pdf(["x"])).detail
    assert values(tmp_path, "a.pdf", pdf(["x"]))["text"] == "x"


# -- together ----------------------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("pages")
def test_a_folder_may_hold_documents_of_all_kinds(tmp_path: Path) -> None:
    files = {"a.txt": b"one\n\nrow", "b.md": b"---\nk: v\n---\ntwo", "c.html": page("three"), "d.docx": docx(paragraph("four"))}
    files |= {"e.pdf": pdf(["five"]), "f.pdf": b"broken", "g.txt.gz": gzip.compress(b"six")}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for pattern in (".", "*.*"):
        found = read_source(FileSource(path=pattern), tmp_path)
        assert found.format == "documents" and found.rows_in == 7
        assert [row.values["text"] for row in found.rows] == ["one\n\nrow", "two", "three", "four", "five", "six"]
        assert [bad.origin.file.rpartition("/")[2] for bad in found.quarantined] == ["f.pdf"]
    (tmp_path / "t.csv").write_text("text\nx\n")
    with pytest.raises(DataError, match="different formats: csv, docx"):
        read_source(FileSource(path="."), tmp_path)


def test_a_word_that_does_not_fit_a_document_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf(["x"]))
    for use in ("text", "html", "docx", "jsonl"):
        with pytest.raises(DataError, match=f"this is no {use}"):
            read_source(FileSource.model_validate({"use": use, "path": "a.pdf"}), tmp_path)
    assert values(tmp_path, "a.md", b"---\nk: v\n---\nx", use="text") != {"text": "x", "k": "v"}
    assert values(tmp_path, "a.txt", b"---\nk: v\n---\nx", use="markdown") == {"text": "x", "k": "v"}


def test_binary_formats_are_not_read_compressed(tmp_path: Path) -> None:
    (tmp_path / "a.pdf.gz").write_bytes(gzip.compress(pdf(["x"])))
    with pytest.raises(DataError, match="pdf files are not read compressed"):
        read_source(FileSource(path="a.pdf.gz"), tmp_path)


def test_a_stream_counts_and_hashes(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": \n{"text": "b"}\n{"text": "a"}\n')
    stream = stream_source(FileSource(path="a.jsonl"), tmp_path)
    assert stream.format == "jsonl" and stream.rows_in == 0
    for _ in range(2):  # each iteration reads anew
        items = list(stream)
        assert stream.rows_in == len(items) == 4
        assert [type(item) for item in items] == [Row, BadRow, Row, Row]
    ids = [item.id for item in items if isinstance(item, Row)]
    assert ids[0] == ids[2] != ids[1] and len(ids[0]) == 32
    assert stream.sha256 == read_source(FileSource(path="a.jsonl"), tmp_path).sha256
    limited = stream_source(FileSource(path="a.jsonl", limit=1), tmp_path)
    assert len(list(limited)) == limited.rows_in == 1


def test_a_missing_package_is_named() -> None:
    with pytest.raises(UsageError, match="reading X files needs no_such_package, which") as caught, optional("reading X files"):
        import no_such_package.part  # noqa: F401
    assert "llm-uplift[data]" in caught.value.fix


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_reads_pdf_files_by_itself(tmp_path: Path) -> None:
    assert values(tmp_path, "a.pdf", pdf(["parent"]))["text"] == "parent"
    (tmp_path / "b.pdf").write_bytes(pdf(["child"]))
    child = os.fork()
    if not child:
        found = read_source(FileSource(path="b.pdf"), tmp_path)
        pdf_module._stop()
        os._exit(0 if found.rows[0].values["text"] == "child" else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert values(tmp_path, "a.pdf", pdf(["parent again"]))["text"] == "parent again"
