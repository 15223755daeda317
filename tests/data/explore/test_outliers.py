"""Planted odd rows are found, in the respect in which they are odd."""

from __future__ import annotations

import pytest

from uplift.data.explore.outliers import outliers_of
from uplift.testing.tiny import tiny_rows

ODD = {
    "length": "a plain sentence about a film. " * 200,
    "symbols": "{}[]()<>;;== ++ -- ## !! ??",
    "digits": "1029384756 5647382910 0099887766",
    "capitals": "THIS IS SHOUTED AT EVERYBODY",
    "non-ASCII characters": "это совсем другой язык",
    "repetition": "again and again. " * 30,
    "longest word": "aGVsbG8gd29ybGQ" * 12,
    "unusual words": "zyx wvut srq ponm lkji hgf",
}


@pytest.mark.parametrize("name", list(ODD))
def test_a_planted_row_is_the_first_of_its_kind(take, name: str) -> None:
    rows = tiny_rows("text", 120)
    rows[50] = {"text": ODD[name]}
    found = {each.name: each for each in outliers_of(take(rows).sample.first())}
    assert name in found and found[name].shown[0].place.endswith(":51"), found.keys()


def test_rows_of_one_kind_have_no_outliers(take) -> None:
    assert outliers_of(take(tiny_rows("text", 120)).sample.first()) == []
    assert outliers_of(take(tiny_rows("text", 5)).sample.first()) == []


def test_long_text_is_cheap(take) -> None:
    rows = [*tiny_rows("text", 40), {"text": "{" * 100_000}, {"text": "a" * 100_000}, {"text": "9 " * 50_000}]
    assert {each.name for each in outliers_of(take(rows).sample.first())} >= {"length", "symbols", "digits", "repetition"}
