"""Take the text out of web pages and of pieces of HTML, and leave alone everything that is no HTML.

The main content of a page is found by trafilatura. A fragment (the body of a post, a review with ``<br />``) keeps all its
text: its markup is taken off by patterns that are linear in the length of the text. A parse tree would gain nothing there, and
fails on markup that is cut, or nested without end.

What counts as HTML: a text that begins as a page does; or one with well-formed tags of known elements, or with entities, on a
fifth of its lines (one line of markup in a long text is an example of it), few of them in quotes, as they are in source code.
So ``a < b``, ``List<String>`` and ``if a<b and c>d`` are no HTML. Escaped markup is markup too: ``&lt;b&gt;bold&lt;/b&gt;``
ends as ``bold``.
"""

from __future__ import annotations

import codecs
import html
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Literal

from uplift.core.prepare_section import Html
from uplift.data.clean.step import CleaningStep, Verdict
from uplift.data.optional import optional

PAGE_LIMIT = 250_000
"""Characters of a page up to which its main content is looked for: trafilatura takes up to 4 s for a megabyte."""
MARKED_LINES = 0.2
QUOTED_MARKS = 0.25
ROUNDS = 50
"""Markup inside escaped markup inside escaped markup; feeds have two levels."""

PARAGRAPHS = frozenset(
    [
        "address",
        "article",
        "aside",
        "blockquote",
        "details",
        "dl",
        "fieldset",
        "figure",
        "footer",
        "form",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "header",
        "hr",
        "main",
        "nav",
        "ol",
        "p",
        "pre",
        "section",
        "table",
        "textarea",
        "ul",
    ]
)
LINES = frozenset(
    [
        "body",
        "br",
        "caption",
        "center",
        "dd",
        "dialog",
        "div",
        "dt",
        "figcaption",
        "head",
        "hgroup",
        "html",
        "legend",
        "li",
        "link",
        "menu",
        "meta",
        "option",
        "summary",
        "tbody",
        "tfoot",
        "thead",
        "tr",
    ]
)
CELLS = frozenset({"td", "th"})
HIDDEN = frozenset({"script", "style", "template", "noscript", "svg", "iframe", "title"})
"""Elements whose content is not shown as text."""
INLINE = frozenset(
    [
        "a",
        "abbr",
        "acronym",
        "area",
        "audio",
        "b",
        "base",
        "bdi",
        "bdo",
        "big",
        "button",
        "canvas",
        "cite",
        "code",
        "col",
        "colgroup",
        "data",
        "datalist",
        "del",
        "dfn",
        "em",
        "embed",
        "font",
        "i",
        "img",
        "input",
        "ins",
        "kbd",
        "label",
        "map",
        "mark",
        "meter",
        "nobr",
        "object",
        "optgroup",
        "output",
        "param",
        "picture",
        "progress",
        "q",
        "rp",
        "rt",
        "ruby",
        "s",
        "samp",
        "select",
        "slot",
        "small",
        "source",
        "span",
        "strike",
        "strong",
        "sub",
        "sup",
        "time",
        "track",
        "tt",
        "u",
        "var",
        "video",
        "wbr",
    ]
)
KNOWN = PARAGRAPHS | LINES | CELLS | HIDDEN | INLINE
ALONE = frozenset({"br", "hr", "img", "p", "li", "td", "tr", "input", "link", "meta"})
"""Elements that are often left without a closing tag."""

PREAMBLE = re.compile(r"[\s\ufeff]++|<\?xml[^<>]*+>|<!--")
PAGE_START = re.compile(r"<!doctype\s+html\b|<(?:html|body)[\s>]|<head>", re.IGNORECASE)
ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")
VALUE = r"""\s*+=\s*+(?:"[^"<]*+"|'[^'<]*+'|[^\s"'<>=`]++)"""
MARK = re.compile(
    rf"<(/?)([a-zA-Z][a-zA-Z0-9]*+)(?:\s++(?:[a-zA-Z_:@][\w:.@-]*+{VALUE}|hidden|checked|disabled|selected))*+\s*+/?>|{ENTITY.pattern}"
)
"""A tag as nothing but markup has it, its attributes with values (``<b and c>`` is none), or an entity."""
TAG = re.compile(
    r"""<(/?)([a-zA-Z][a-zA-Z0-9]*+(?:[:-][\w:.-]*+)?)(?:[\s/](?:[^<>"']|"[^"]*"|'[^']*')*+|[\s/][^<>]*+)?>|<[!?][^<>]*+>"""
)
"""A tag as found in the wild; the second form of attributes is for quotes without a partner."""
CUT_TAG = re.compile(r"<[/!?]?[a-zA-Z][^<>]*+\Z")
HIDDEN_START = re.compile(rf"<!--|<({'|'.join(sorted(HIDDEN))})\b[^<>]*+>", re.IGNORECASE)
HIDDEN_END = {name: re.compile(rf"</{name}\b[^<>]*+>?", re.IGNORECASE) for name in HIDDEN} | {"": re.compile("-->")}
PREFORMATTED = re.compile(r"(</?(?:pre|textarea)(?:\s[^<>]*+)?>)", re.IGNORECASE)
SPACES = re.compile(r"[ \t\n\r\f\v\xa0]++")
ITEM_ALONE = re.compile(r"(?<![^\n])-[ \t]*+\n\s*+")
"""The dash of an item whose text begins a paragraph of its own."""
LAYOUT_SPACE = re.compile(r"(?<![^\n]) (?=[^\s])|(?<=\n- ) ++")
"""The one space that white space of the source became, before the text of a line."""
OVER_ESCAPED = re.compile("&(?:amp;){3,}+")
SEVERAL_SPACES = re.compile(" {2,}+")
EMPTY_LINES = re.compile("\n{3,}+")
CHARSET = re.compile(
    rb"""<meta\b[^<>]{0,200}?charset\s{0,9}=\s{0,9}["']?((?:utf|iso|windows|cp|koi8|euc|gb|big5|shift|mac|tis)[a-z0-9_-]{1,20})""",
    re.IGNORECASE,
)
OTHER_SIGNS = ("<?php", "<%", "\n```", "\n#include", "\n/**")
BYTE_ORDER = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


class HtmlStripper(CleaningStep):
    """Takes markup off. Counted: ``page`` (its main content), ``whole_page`` (all text of a page: it was asked for, no main
    content was found, or the page is too long to look for it), ``fragment``; ``unparsed``: no text was found, the markup stays.
    """

    def __init__(self, settings: Html) -> None:
        self._boilerplate = settings.boilerplate
        if settings.boilerplate:
            main_content()

    def judge(self, row: int, text: str) -> Verdict:
        """The text without markup."""
        counts: dict[str, int] = {}
        result = text
        for _ in range(ROUNDS):
            kind = kind_of_html(result)
            if not kind:
                break
            rule, stripped = _stripped(result, kind, self._boilerplate)
            if not stripped:
                return Verdict(text, {"unparsed": 1}, "no text was found in the markup")
            if stripped == result:
                break
            counts[rule], result = 1, stripped
        return Verdict(result, counts)


def page_text(page: str | bytes, boilerplate: bool = True) -> str:
    """The text of what is known to be a page, or nothing; ``boilerplate``: without navigation, banners and footers."""
    text = decoded_page(page) if isinstance(page, bytes) else page
    return _stripped(text, "page", boilerplate)[1]


def decoded_page(page: bytes) -> str:
    """A page as text: by its byte order mark, as UTF-8, by the character set that it names, or else as Windows-1252."""
    for mark, table in BYTE_ORDER.items():
        if page.startswith(mark):
            return page[len(mark) :].decode(table, "replace")
    named = CHARSET.search(page, 0, 4096)
    for table in ("utf-8", named[1].decode("ascii") if named else "utf-8"):
        try:
            return page.decode(table)
        except (LookupError, UnicodeError):
            continue
    return page.decode("windows-1252", "replace")


# -- is it HTML? -------------------------------------------------------------------------------------------------------
def kind_of_html(text: str) -> Literal["page", "fragment", ""]:
    """Whether a text is HTML, and if so whether it is a whole page."""
    if "<" not in text and "&" not in text:
        return ""
    if _begins_as_page(text):
        return "page"
    marks = [mark for mark in MARK.finditer(text) if not mark[2] or mark[2].lower() in KNOWN]
    if not any(not mark[2] or mark[1] or mark[2].lower() in ALONE for mark in marks) or _is_other_language(text):
        return ""
    quotes = set("\"'`")
    quoted = sum(
        text[mark.start() - 1 : mark.start()] in quotes or text[mark.end() : mark.end() + 1] in quotes for mark in marks
    )
    if quoted > QUOTED_MARKS * len(marks):
        return ""
    first, last = marks[0], marks[-1]
    if first[2] and last[2] and not text[: first.start()].strip() and not text[last.end() :].strip():
        return "fragment"
    lines = sum(bool(line.strip()) for line in text.split("\n"))
    return "fragment" if _lines_with(marks, text) >= MARKED_LINES * lines else ""


def _begins_as_page(text: str) -> bool:
    at = 0
    while (before := PREAMBLE.match(text, at)) is not None:
        at = before.end() if before[0] != "<!--" else text.find("-->", at) + 3
        if at < before.end():  # a comment without end
            return False
    return PAGE_START.match(text, at) is not None


def _is_other_language(text: str) -> bool:
    """XML, a template of another language, code with markup in its comments, or Markdown that shows code."""
    return text.lstrip().startswith("<?xml") or any(sign in f"\n{text}" for sign in OTHER_SIGNS)


def _lines_with(marks: Iterable[re.Match[str]], text: str) -> int:
    number, at, numbers = 0, 0, set()
    for mark in marks:
        number += text.count("\n", at, mark.start())
        at = mark.start()
        numbers.add(number)
    return len(numbers)


# -- its text ----------------------------------------------------------------------------------------------------------
@cache
def main_content() -> Callable[[str], str]:
    """What finds the main content of a page; its text, or nothing."""
    with optional("finding the main content of web pages"):
        import trafilatura
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # it writes a line for every page without content

    def find(page: str) -> str:
        parts = [part if inside else SPACES.sub(" ", part) for part, inside in _parts(page)]  # else it would show in the text
        try:
            found = trafilatura.extract("".join(parts), include_comments=False) or ""
            return _tidy(LAYOUT_SPACE.sub("", found))
        except (
            Exception
        ):  # strangers' markup can break a parser in any way; then the page keeps all its text, and is counted so
            return ""

    return find


def _stripped(text: str, kind: Literal["page", "fragment"], boilerplate: bool) -> tuple[str, str]:
    """What was taken, and its text."""
    if kind == "page" and boilerplate and len(text) <= PAGE_LIMIT:
        found = main_content()(text)
        if found:
            return "page", found
    cut = max(text.rfind("<"), 0)
    if kind == "page" and CUT_TAG.match(text, cut):
        text = text[:cut]
    return ("whole_page" if kind == "page" else "fragment"), without_markup(text)


def without_markup(text: str) -> str:
    """All text of a piece of HTML: blocks on lines of their own, items with a dash, cells apart, preformatted text as it is."""
    blocks = []
    for part, preformatted in _parts(_without_hidden(text)):
        if preformatted:
            block = _unescaped(TAG.sub(_replacement, part)).strip("\n").rstrip()
        else:
            block = _unescaped(TAG.sub(_replacement, SPACES.sub(" ", part))).replace("\xa0", " ")
            block = _tidy("\n".join([line.strip() for line in SEVERAL_SPACES.sub(" ", block).split("\n")]))
        if block.strip():
            blocks.append(block)
    return "\n\n".join(blocks)


def _parts(text: str) -> Iterator[tuple[str, bool]]:
    """Pieces of the text, in order and complete, and whether each is preformatted."""
    inside = False
    for part in PREFORMATTED.split(text):
        if PREFORMATTED.fullmatch(part):
            inside = not part.startswith("</")
            yield part, True
        else:
            yield part, inside


def _tidy(text: str) -> str:
    """No spaces at line ends, one empty line between blocks, the dash of an item beside its text."""
    text = "\n".join([line.rstrip() for line in text.split("\n")])
    return EMPTY_LINES.sub("\n\n", ITEM_ALONE.sub("- ", text)).strip()


def _without_hidden(text: str) -> str:
    """Without comments, scripts and the like; one without end hides all that follows it, as it does in a browser."""
    pieces, at = [], 0
    while (start := HIDDEN_START.search(text, at)) is not None:
        pieces.append(text[at : start.start()])
        end = HIDDEN_END[(start[1] or "").lower()].search(text, start.end())
        if end is None:
            return "".join(pieces)
        at = end.end()
    return "".join([*pieces, text[at:]])


def _replacement(tag: re.Match[str]) -> str:
    """What stands for a tag in the text. An unknown element, such as the type in ``List<String>``, stays."""
    if not tag[2]:
        return ""
    name = tag[2].lower()
    if name in INLINE or name in HIDDEN:
        return ""
    if name in PARAGRAPHS:
        return "\n\n"
    if name in LINES:
        return "\n- " if name == "li" and not tag[1] else "\n"
    if name in CELLS:
        return "\t" if tag[1] else ""
    return "" if ":" in name or "-" in name else tag[0]


def _unescaped(text: str) -> str:
    return ENTITY.sub(lambda entity: html.unescape(entity[0]), OVER_ESCAPED.sub("&amp;", text)) if "&" in text else text
