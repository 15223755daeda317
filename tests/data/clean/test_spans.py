"""Labelled spans follow edits: what no edit touches reads the same afterwards."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from uplift.data.clean.spans import Span, edits_between, move_spans
from uplift.data.clean.step import Edit, edited

CUTS = st.lists(st.integers(0, 40), min_size=2, max_size=8, unique=True).map(sorted)


@st.composite
def edited_texts(draw: st.DrawFn) -> tuple[str, list[Edit]]:
    text = draw(st.text(alphabet="abcd \n", min_size=40, max_size=60))
    cuts = draw(CUTS)
    pairs = zip(cuts[::2], cuts[1::2], strict=False)
    return text, [Edit(start, end, draw(st.text(alphabet="XYZ", max_size=5)), "r") for start, end in pairs]


@given(case=edited_texts(), ends=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=10))
def test_untouched_spans_read_the_same(case: tuple[str, list[Edit]], ends: list[tuple[int, int]]) -> None:
    text, edits = case
    spans: list[Span | None] = [(min(pair), max(pair)) for pair in ends]
    new = edited(text, edits).text
    assert new is not None
    for old, moved in zip(spans, move_spans(spans, edits), strict=True):
        assert old is not None
        touching = [edit for edit in edits if edit.start < old[1] and edit.end > old[0]]
        crossing = [edit for edit in touching if edit.start < old[0] or edit.end > old[1]]
        if crossing:
            assert moved is None
        elif not touching:
            assert moved is not None and new[slice(*moved)] == text[slice(*old)]
        elif moved is not None:
            inside = [Edit(edit.start - old[0], edit.end - old[0], edit.new, "r") for edit in touching]
            assert new[slice(*moved)] == edited(text[slice(*old)], inside).text
        else:
            assert sum(edit.end - edit.start for edit in touching) == old[1] - old[0] and not any(edit.new for edit in touching)


@given(old=st.text(max_size=30), new=st.text(max_size=30))
def test_edits_lead_from_one_text_to_the_other(old: str, new: str) -> None:
    edits = edits_between(old, new)
    assert edited(old, edits).text == new
    assert all(first.end <= second.start for first, second in zip(edits, edits[1:], strict=False))


def test_long_texts_are_compared_in_no_time() -> None:
    old, new = "ab" * 50_000, "x" + "ba" * 50_000
    assert edited(old, edits_between(old, new)).text == new


@pytest.mark.parametrize(
    ("span", "edit", "expected"),
    [
        ((3, 6), Edit(3, 6, "[email]", ""), (3, 10)),  # the whole span is replaced
        ((3, 6), Edit(0, 3, "", ""), (0, 3)),
        ((3, 6), Edit(6, 9, "", ""), (3, 6)),
        ((3, 6), Edit(2, 4, "x", ""), None),
        ((3, 6), Edit(5, 7, "x", ""), None),
        ((3, 6), Edit(3, 6, "", ""), None),
        ((3, 3), Edit(0, 1, "", ""), (2, 2)),
        ((3, 6), Edit(0, 9, "x", ""), None),
    ],
)
def test_each_way_an_edit_can_lie(span: Span, edit: Edit, expected: Span | None) -> None:
    assert move_spans([span], [edit]) == [expected]
