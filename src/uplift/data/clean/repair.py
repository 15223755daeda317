"""Undo broken encodings, bring Unicode and white space into one form, and leave code as it is.

Encodings are repaired by ftfy, line by line, so that a broken line does not hide among good ones. Nothing else of ftfy is used:
it would straighten quotes and take ligatures apart, which changes code and has nothing to do with encodings.

White space is ours, because source code must survive: tabs, indentation and blank lines stay. What has a use in its script
stays too: the joiners of Arabic and Indic scripts and of emoji, the word breaks of Thai and Khmer, the variation selectors of
ideographs and emoji, the tags of flags.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache

from uplift.core.prepare_section import Repair
from uplift.data.clean.step import CleaningStep, Verdict, dropped
from uplift.data.optional import optional

ROUNDS = 50
"""One repair can lay open the next (a character that two invisible ones kept apart); real texts are stable after two."""

# What needs joiners: Arabic to N'Ko, Indic scripts, Tibetan, Myanmar, Khmer, Mongolian, the presentation forms of Arabic.
JOINING = "\u0600-\u08ff\u0900-\u0dff\u0f00-\u109f\u1780-\u18af\ufb50-\ufdff\ufe70-\ufefc"
EMOJI = "\u2190-\u2bff\ufe0f\U0001f000-\U0001faff"
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
IDEOGRAPHS = "\u2e80-\u9fff\uf900-\ufaff\U00020000-\U000323af"

ODD = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\xa0\xad\u061c\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff\ufff9-\ufffb\ufffe\uffff"
    "\U000e0000-\U000e01ef]"
)
"""Whatever the patterns below can change: most texts hold none of it, and are done after one look."""
LINE_BREAK = re.compile("\r\n?|[\x85\u2028\u2029]")
PAGE_BREAK = re.compile("(?<![\v\f])[\v\f]++")
ODD_SPACE = re.compile("[\xa0\u2000-\u200a\u202f\u205f\u3000]")
INVISIBLE = re.compile(
    "(\U0001f3f4[\U000e0020-\U000e007e]{1,8}\U000e007f)"  # a flag with its tags: found first, and put back
    "|[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]"
    "|[\xad\u061c\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff\U000e0000-\U000e007f]"
    f"|(?<![{UNSPACED}])\u200b|\u200b(?![{UNSPACED}])"
    f"|(?<![{JOINING}])\u200c|(?<![{JOINING}{EMOJI}])\u200d"
    "|(?<![\u1800-\u18af])\u180e"
    f"|(?<![{IDEOGRAPHS}])[\U000e0100-\U000e01ef]"
)


@cache
def encoding_repair() -> tuple[re.Pattern[str], Callable[[str], str]]:
    """A pattern that finds something in every text whose encoding may be broken; and ftfy's repair of encodings, for one line.

    ftfy's own test for broken text takes a third of a second for a megabyte. The pattern is faster, and as exact: text in UTF-8
    that was read with a table of single bytes holds, side by side, the two characters that this table has for a leading and
    for a following byte of UTF-8.
    """
    with optional("repairing encodings"):
        import ftfy
        from ftfy.chardata import CHARMAP_ENCODINGS
    classes = [[_decoded(numbers, table) for numbers in (range(0xC0, 0xF5), range(0x80, 0xC0))] for table in CHARMAP_ENCODINGS]
    pairs = "|".join(f"[{leading}][{following}\x1a\ufffd]" for leading, following in classes)
    any_leading, any_following = ("".join(column) for column in zip(*classes, strict=True))
    # \x80-\x9f: Windows-1252 read as Latin-1. "\xc3 ": an "à" whose second byte, a no-break space, became a space.
    suspicious = re.compile(f"(?=[{any_leading}][{any_following}\x1a\ufffd])(?:{pairs})|[\x80-\x9f]|\xc3 ")
    settings = ftfy.TextFixerConfig(unescape_html=False, explain=False)
    return suspicious, lambda line: ftfy.fix_encoding(line, settings)


def _decoded(numbers: range, table: str) -> str:
    """What the table has for these bytes, for use in a class of a pattern."""
    return re.escape("".join(sorted(bytes([number]).decode(table, "ignore") for number in numbers)))


class Repairer(CleaningStep):
    """Repairs a text. Each kind of change is counted: ``encoding`` and ``unicode_form`` by lines, ``spaces`` and ``invisible``
    by places. A text of which nothing is left goes, as ``empty``.
    """

    def __init__(self, settings: Repair) -> None:
        self._settings = settings
        self._encoding = encoding_repair() if settings.encoding else None

    def judge(self, row: int, text: str) -> Verdict:
        """The repaired text."""
        counts: dict[str, int] = {}
        repaired = text
        for _ in range(ROUNDS):
            before, repaired = repaired, self._repaired(repaired, counts)
            if repaired == before:
                break
        if text.strip() and not repaired.strip():
            return dropped("empty", "it held nothing but invisible characters")
        return Verdict(repaired, counts)

    def _repaired(self, text: str, counts: dict[str, int]) -> str:
        if not text.isascii():
            if self._encoding and self._encoding[0].search(text):
                text = _by_line(text, self._encoding[1], counts, "encoding")
            form = self._settings.unicode
            if form != "keep" and not unicodedata.is_normalized(form, text):
                text = _by_line(text, lambda line: unicodedata.normalize(form, line), counts, "unicode_form")
        return _with_plain_spaces(text, counts) if self._settings.spaces else text


def _by_line(text: str, change: Callable[[str], str], counts: dict[str, int], rule: str) -> str:
    """Each line changed for itself; those that differ are counted."""
    before = text.split("\n")
    after = [line if line.isascii() else change(line) for line in before]
    _count(counts, rule, sum(old != new for old, new in zip(before, after, strict=True)))
    return "\n".join(after)


def _with_plain_spaces(text: str, counts: dict[str, int]) -> str:
    if ODD.search(text):
        text, breaks = LINE_BREAK.subn("\n", text)
        text, pages = PAGE_BREAK.subn(_line_break, text)
        text, spaces = ODD_SPACE.subn(" ", text)
        _count(counts, "spaces", breaks + pages + spaces)
        before = len(text)
        text = INVISIBLE.sub(_flag, text)
        _count(counts, "invisible", before - len(text))
    if " \n" in text or "\t\n" in text or text.endswith((" ", "\t")):
        lines = text.split("\n")
        _count(counts, "spaces", sum(line.endswith((" ", "\t")) for line in lines))
        text = "\n".join([line.rstrip(" \t") for line in lines])
    return text


def _line_break(found: re.Match[str]) -> str:
    """Beside a line break, a page break says nothing more; alone it keeps words apart, as a line break does."""
    around = found.string[max(0, found.start() - 1) : found.start()], found.string[found.end() : found.end() + 1]
    return "" if {"", "\n"} & {*around} else "\n"


def _flag(found: re.Match[str]) -> str:
    return found[1] or ""


def _count(counts: dict[str, int], rule: str, number: int) -> None:
    if number:
        counts[rule] = counts.get(rule, 0) + number
