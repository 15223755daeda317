"""Repair: each kind of change, what stays, code that means the same, and that a second repair changes nothing."""

from __future__ import annotations

import ast
import sys
import time
import warnings
from pathlib import Path

import ftfy
import pytest
from ftfy.chardata import CHARMAP_ENCODINGS
from hypothesis import given, settings, strategies as st

from uplift.core.prepare_section import Repair
from uplift.data.clean.repair import Repairer, encoding_repair

REPAIRER = Repairer(Repair())


@pytest.mark.parametrize(
    "text, repaired, counts",
    [
        ("plain text\n\n\tindented\n", "plain text\n\n\tindented\n", {}),
        ("schÃ¶n\nfine\ncafÃ©", "schön\nfine\ncafé", {"encoding": 2}),
        ("“quotes”, ﬁne, ½ and x² stay", "“quotes”, ﬁne, ½ and x² stay", {}),
        ("e\u0301te\u0301 été", "été été", {"unicode_form": 1}),
        ("a\u00a0b\u2009c\u3000d", "a b c d", {"spaces": 3}),
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd", {"spaces": 3}),
        ("line  \n\t\n end \t", "line\n\n end", {"spaces": 3}),
        ("one\ftwo\n\fthree\f\n", "one\ntwo\nthree\n", {"spaces": 3}),
        ("\ufeffin\u00advis\u200bible\x00\x1b", "invisible", {"invisible": 5}),
        ("می\u200cخواهم क्\u200dष", "می\u200cخواهم क्\u200dष", {}),
        ("a\u200cb\u200dc", "abc", {"invisible": 2}),
        ("👩\u200d👩\u200d👧 ❤️\u200d🔥", "👩\u200d👩\u200d👧 ❤️\u200d🔥", {}),
        ("ខ្ញុំ\u200bទៅ", "ខ្ញុំ\u200bទៅ", {}),
        (
            "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f x\U000e0041",
            "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f x",
            {"invisible": 1},
        ),
        ("Ã\u200b©", "é", {"invisible": 1, "encoding": 1}),
    ],
)
def test_each_kind_of_change(text: str, repaired: str, counts: dict[str, int]) -> None:
    verdict = REPAIRER.judge(0, text)
    assert (verdict.text, dict(verdict.counts)) == (repaired, counts)
    assert REPAIRER.judge(0, repaired).text == repaired and not REPAIRER.judge(0, repaired).counts


def test_each_part_can_be_left_out() -> None:
    text = "cafÃ© e\u0301\u00a0x "
    assert Repairer(Repair(encoding=False)).judge(0, text).text == "cafÃ© é x"
    assert Repairer(Repair(unicode="keep")).judge(0, text).text == "café e\u0301 x"
    assert Repairer(Repair(spaces=False)).judge(0, text).text == "café é\u00a0x "
    assert Repairer(Repair(unicode="NFKC")).judge(0, "ﬁ x²").text == "fi x2"


def test_a_text_of_nothing_but_invisible_characters_goes() -> None:
    verdict = REPAIRER.judge(0, "\u200b\ufeff \u00a0")
    assert verdict.text is None and verdict.counts == {"empty": 1}
    assert REPAIRER.judge(0, "").text == ""


@pytest.mark.parametrize("table", CHARMAP_ENCODINGS)
def test_the_quick_look_misses_nothing_that_ftfy_repairs(table: str) -> None:
    suspicious, _ = encoding_repair()
    lines = [
        "Größe, Maß und Straße",
        "déjà vu à Noël",
        "Привет, как дела?",
        "Ελληνικά γράμματα",
        "“quoted” – and… more",
        "日本語の文章",
        "عربي",
        "Zażółć gęślą jaźń",
    ]
    repaired = 0
    for line in lines:
        try:
            broken = line.encode().decode(table)
        except UnicodeDecodeError:
            continue
        after = ftfy.fix_encoding(broken)
        repaired += after == line
        assert after == broken or suspicious.search(broken), broken
        assert REPAIRER.judge(0, line).text == line
    print(f"{table}: {repaired} of {len(lines)} lines repaired")
    assert repaired >= 1


@settings(max_examples=300, deadline=None)
@given(
    st.text(
        alphabet=st.sampled_from(
            "aé Ã©â€™\x80\x93\xa0\xad\u200b\u200c\u200d\ufeff\u0301\u00b4\r\n\t\f\u2028ب🏴👩\U000e0061\U000e007fЖ字"
        ),
        max_size=60,
    )
)
def test_a_second_repair_changes_nothing(text: str) -> None:
    for form in ("NFC", "NFKC", "keep"):
        repairer = Repairer(Repair(unicode=form))
        once = repairer.judge(0, text).text
        if once is not None:
            verdict = repairer.judge(0, once)
            assert verdict.text == once and not verdict.counts


def library_files() -> list[Path]:
    library = Path(sys.base_prefix) / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    return [path for path in sorted(library.rglob("*.py")) if "site-packages" not in path.parts]


LITERALS = {"test_email.py", "test_exceptions.py", "test_getpass.py", "test_ntpath.py", "test_shelve.py", "test_smtpd.py"}
"""Files that hold broken encodings or unusual forms in literals, on purpose."""


@pytest.mark.slow
def test_the_standard_library_means_the_same_after_repair() -> None:
    changed, different, count = [], set(), 0
    for path in library_files():
        try:
            source = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue
        count += 1
        repaired = REPAIRER.judge(0, source).text
        if repaired == source:
            continue
        changed.append(path.name)
        with warnings.catch_warnings(action="ignore"):
            try:
                before = ast.dump(ast.parse(source))
            except (SyntaxError, ValueError):
                continue
            if ast.dump(ast.parse(repaired or "")) != before:
                different.add(path.name)
    print(f"{count} files, {len(changed)} changed, {len(different)} differ in literals: {sorted(different)}")
    assert count > 1500 and len(changed) < 40
    assert different <= LITERALS | {"test_unicode_identifiers.py"}


@pytest.mark.parametrize(
    "piece", ["\f", " ", "\u200b", "Ã", "Ã©", "\u0301", "a\u0301", "\r", "🏴", "\U000e0061", "\x80", "Ã\u200b©", "\u200d"]
)
def test_hostile_text_takes_no_long_time(piece: str) -> None:
    text = "a" + piece * (100_000 // len(piece)) + "x"
    start = time.process_time()
    once = REPAIRER.judge(0, text).text or ""
    assert REPAIRER.judge(0, once).text == once
    assert time.process_time() - start < 3
