"""HTML: pages, fragments, what is no HTML, broken and hostile markup, and that a second pass changes nothing."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from uplift.core.prepare_section import Html
from uplift.data.clean.html import HtmlStripper, decoded_page, kind_of_html, page_text, without_markup

STRIPPER = HtmlStripper(Html())
ALL_TEXT = HtmlStripper(Html(boilerplate=False))
PARAGRAPH = "The river rose for nine days, and on the tenth the old bridge at the mill gave way under the weight of the water. "
PAGE = f"""<!DOCTYPE html><html><head><title>Flood</title><style>p {{ color: red }}</style></head><body>
<nav><a href="/">Home</a> <a href="/news">News</a> <a href="/about">About us</a></nav>
<article><h1>The flood</h1><p>{PARAGRAPH * 3}</p><p>{PARAGRAPH.replace("river", "lake") * 3}</p></article>
<footer>Copyright &copy; 2021 <a href="/imprint">Imprint</a></footer><script>var x = "<p>no</p>";</script></body></html>"""


def test_the_main_content_of_a_page() -> None:
    verdict = STRIPPER.judge(0, PAGE)
    assert verdict.text is not None and verdict.counts == {"page": 1}
    assert PARAGRAPH.strip() in verdict.text and "lake rose" in verdict.text
    assert not {"Home", "Imprint", "var x", "color"} & set(verdict.text.replace(",", " ").split())
    whole = ALL_TEXT.judge(0, PAGE)
    assert whole.counts == {"whole_page": 1} and whole.text is not None
    assert "Copyright © 2021 Imprint" in whole.text and "The flood\n\n" in whole.text and "var x" not in whole.text


@pytest.mark.parametrize(
    "text, stripped",
    [
        ("great movie.<br /><br />I liked it &amp; more", "great movie.\n\nI liked it & more"),
        ("He wrote <b>bold</b> text.", "He wrote bold text."),
        ("<ul><li>one<li><p>two</p></ul><table><tr><td>1</td><td>2</td></tr></table>", "- one\n- two\n\n1\t2"),
        ("<pre>  def f():\n\n\n      return 1</pre> after\n text", "  def f():\n\n\n      return 1\n\nafter text"),
        ("<p>Use <code>List&lt;String&gt;</code> here</p>", "Use List<String> here"),
        ("&lt;b&gt;bold&lt;/b&gt; &#8220;x&#x201d;", "bold “x”"),
        ("<p>a</p><!-- hidden --><script>alert('<p>x</p>')</script><p title='a > b'>b</p>", "a\n\nb"),
        ("<p>x</p><my-widget>y</my-widget><o:p>z</o:p>", "x\n\nyz"),
        ("<p>cut <!-- here", "cut"),
    ],
)
def test_fragments(text: str, stripped: str) -> None:
    verdict = STRIPPER.judge(0, text)
    assert verdict.text == stripped and verdict.counts == {"fragment": 1}
    assert STRIPPER.judge(0, stripped).text == stripped


@pytest.mark.parametrize(
    "text",
    [
        "a < b and b > c, x<y",
        "if a<b and c>d: pass",
        "List<String> names = new Map<K, V>();",
        "std::vector<int> a; a<b>c; template<i>",
        "for all $a<i>b$ and $x<p$, AT&T; R&D &nosuch",
        "print('<b>%s</b>' % name)\nprint(\"<br>\")",
        "Use `<b>bold</b>` in the text.",
        "<?xml version='1.0'?><doc><p>x</p></doc>",
        "Text\n```\n<p>code</p>\n```\n",
        "one\ntwo\nthree\nfour\nfive\nsix, an <b>example</b>\nseven\neight\nnine\nten\neleven",
        "",
    ],
)
def test_what_is_no_html_stays(text: str) -> None:
    assert kind_of_html(text) == "" and STRIPPER.judge(0, text).text == text


def test_the_standard_library_stays() -> None:
    library = Path(sys.base_prefix) / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    files = [path for path in library.rglob("*.py") if "site-packages" not in path.parts]
    wrong = [path.name for path in files if kind_of_html(path.read_text(encoding="utf-8", errors="replace"))]
    print(f"{len(files)} files, taken for HTML: {wrong}")
    assert len(files) > 1000 and not wrong


def test_markup_without_text_stays_and_is_counted() -> None:
    for text in ("<br><hr>", "<html><body><script>x</script></body></html>"):
        verdict = STRIPPER.judge(0, text)
        assert verdict.text == text and verdict.counts == {"unparsed": 1}


def test_pages_cut_anywhere_give_text() -> None:
    for end in range(200, len(PAGE), 97):
        once = STRIPPER.judge(0, PAGE[:end]).text
        assert once is not None and STRIPPER.judge(0, once).text == once
    assert without_markup("<p>a <b>b</p></b></i> c").split() == ["a", "b", "c"]


N = 60_000
HOSTILE = {
    "5 MB": "<html><body>" + "<p>Hello <b>there</b> &amp; <a href='x'>links</a>.</p>\n" * 95_000,
    "nested": "<html>" + "<div>" * N + "hello",
    "inline": "<p>" + "<b>" * N + "hi</b>",
    "brackets": "<p>" + "<" * N + "</p>",
    "comments": "<p>a</p>" + "<!--" * N,
    "scripts": "<p>a</p>" + "<script>" * N,
    "cut scripts": "<p>a</p>" + "<script" * N,
    "quotes": "<p>a</p>" + "<a \"'" * N,
    "attributes": "<p>x</p><p " + "c=d " * N,
    "ampersands": "<p>x</p>&" + "amp;" * N + "lt;",
    "preformatted": "<pre>" * N + "x</pre>",
    "spaces": "<p>x</p><p " + " " * N,
    "lines": "<p>x</p>" + "\n" * N + "x",
    "declarations": "<?xml " * N,
    "links": "<html><body>" + "<a href=x>link</a> " * 3_000,
    "table": "<html><body><table>" + "<tr><td>x</td></tr>" * 3_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_markup_takes_no_long_time(name: str) -> None:
    start = time.process_time()
    once = STRIPPER.judge(0, HOSTILE[name]).text
    spent = time.process_time() - start
    assert once is not None and STRIPPER.judge(0, once).text == once
    assert spent < 5, f"{spent:.1f} s"


def test_bytes_are_decoded_as_the_page_says() -> None:
    body = "<p>Größe für alle: schön, daß es geht.</p>"
    assert decoded_page(body.encode()) == body
    assert decoded_page(b"\xff\xfe" + body.encode("utf-16-le")) == body
    assert decoded_page(b"\xef\xbb\xbf" + body.encode()) == body
    latin = f'<meta charset="iso-8859-2">{body}'
    assert decoded_page(latin.encode("iso-8859-2")) == latin
    assert decoded_page("<p>“x” – é</p>".encode("windows-1252")) == "<p>“x” – é</p>"
    assert decoded_page(b'<meta charset="utf-nonsense">\xe9').endswith("é")
    assert page_text(b"<p>a &amp; b", boilerplate=False) == "a & b"
    assert PARAGRAPH.strip() in page_text(PAGE) and page_text("<html></html>") == ""
