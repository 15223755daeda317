"""Tokens: counts, cuts, the suggested length, and what the tokenizer does not know."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from uplift.data.explore.tokens import LONGEST_SUGGESTED, STEP, Cutter, cut_at, suggested_length, tokens_of
from uplift.data.tokenizer import measure_tokenizer
from uplift.testing.tiny import tiny_encoder_tokenizer, tiny_rows, tiny_tokenizer


@given(st.lists(st.integers(1, 7000), min_size=1, max_size=400))
def test_the_suggested_length_holds_99_per_cent_and_no_step_less_does(lengths: list[int]) -> None:
    encoded = np.array(lengths)
    length = suggested_length(encoded)
    assert (encoded <= length).mean() >= 0.99 and length % STEP == 0
    assert length == STEP or (encoded <= length - STEP).mean() < 0.99 + 1 / len(lengths)


def test_the_suggested_length_has_an_end() -> None:
    assert suggested_length(np.full(10, 10**6)) == LONGEST_SUGGESTED


def test_no_more_is_suggested_than_the_model_can_read(take) -> None:
    rows = take([{"text": "word " * 900}]).sample.first()
    found = tokens_of("it", Cutter(tiny_tokenizer()), rows, [], 512)
    assert found.suggested_length == 512 and found.suggested_cut == 1.0
    assert tokens_of("it", Cutter(tiny_tokenizer()), rows, [], None).suggested_cut == 0


def test_cuts_by_hand() -> None:
    cut = cut_at(np.array([10, 20, 30, 40]), 25)
    assert (cut.rows, cut.tokens) == (0.5, 0.2)
    assert cut_at(np.array([10]), 10).rows == 0


@pytest.mark.parametrize("make", [tiny_tokenizer, tiny_encoder_tokenizer])
def test_counts_are_those_of_the_tokenizer_report(take, make) -> None:
    taken = take(tiny_rows("text", 50))
    rows = taken.sample.first()
    fit = measure_tokenizer("it", make(), [row.text for row in rows])
    found = tokens_of("it", Cutter(make()), rows, [2, 3, 4], None)
    assert found.content.total == fit.tokens
    assert found.bytes_per_token == pytest.approx(fit.bytes_per_token, abs=1e-3)
    assert found.fertility == pytest.approx(fit.fertility, abs=1e-3)
    assert found.unknown == pytest.approx(fit.unknown_rate, abs=1e-6)
    assert found.encoded.p50 == found.content.p50 + 3  # the median of what the template adds
    assert found.suggested_length in {cut.max_length for cut in found.cuts}


def test_parts_of_characters_and_unknown_signs_are_counted(take) -> None:
    rows = take([{"text": "漢字"}]).sample.first()
    assert tokens_of("it", Cutter(tiny_tokenizer()), rows, [], None).byte_pieces == 1.0  # three bytes for each
    assert tokens_of("it", Cutter(tiny_encoder_tokenizer()), rows, [], None).unknown > 0
    plain = tokens_of("it", Cutter(tiny_tokenizer()), take(tiny_rows("text", 20)).sample.first(), [], None)
    assert plain.byte_pieces == 0 and plain.unknown == 0


def test_dear_words_come_with_their_pieces(take) -> None:
    rows = take([{"text": "the film was electrocardiogram"} for _ in range(5)]).sample.first()
    first = tokens_of("it", Cutter(tiny_tokenizer()), rows, [], None).split_words[0]
    assert (first.word, first.count) == ("electrocardiogram", 5)
    assert "".join(first.pieces) == "electrocardiogram" and len(first.pieces) >= 3
