"""The random sample of a stream: bounded, fair, the same for the same data."""

from __future__ import annotations

import random

import numpy as np

from uplift.core.values import Origin, Sample
from uplift.data.explore.sample import RowSample, TextRow
from uplift.data.rows import Row


def row(number: int, text: str = "x") -> TextRow:
    origin = Origin("f", number + 1)
    return TextRow(number, Row({"text": text}, origin), Sample(str(number), origin, text=text), text, text, None)


def numbers(sample: RowSample, *limits: int) -> list[int]:
    return [each.number for each in sample.first(*limits)]


def filled(count: int, rows: int, characters: int = 10**9, order: list[int] | None = None) -> RowSample:
    sample = RowSample(rows, characters)
    for number in order or range(count):
        sample.offer(row(number, "x" * (1 + number % 7)))
    return sample


def test_few_rows_are_all_kept_in_their_order() -> None:
    assert numbers(filled(50, 100)) == list(range(50))


def test_it_keeps_at_most_what_it_may() -> None:
    assert len(filled(5000, 300)) == 300
    short = filled(5000, 5000, characters=1000)
    assert 950 <= sum(len(each.text) for each in short.first()) <= 1000


def test_it_does_not_depend_on_the_order_of_the_rows() -> None:
    order = random.Random(0).sample(range(3000), 3000)
    assert numbers(filled(3000, 200)) == numbers(filled(3000, 200, order=order))


def test_every_row_has_the_same_chance() -> None:
    """400 of 4,000: each tenth of the rows gives about 40 (5 standard deviations of a hypergeometric draw are 28)."""
    tenths = np.bincount(np.array(numbers(filled(4000, 400))) // 400, minlength=10)
    assert tenths.sum() == 400 and (abs(tenths - 40) <= 28).all()


def test_length_does_not_decide_who_stays() -> None:
    kept = np.array([len(each.text) for each in filled(20_000, 20_000, characters=8000).first()])
    assert abs(kept.mean() - 4.0) <= 0.25  # lengths 1 to 7 in equal parts: 5 standard errors of 2,000 rows


def test_every_beginning_is_a_sample_too() -> None:
    sample = filled(4000, 400)
    first = numbers(sample, 100)
    assert len(first) == 100 and set(first) < set(numbers(sample))
    assert first == numbers(filled(4000, 100))


def test_a_single_row_of_any_length_stays() -> None:
    sample = RowSample(10, 100)
    sample.offer(row(0, "x" * 5000))
    assert len(sample) == 1 and len(sample.first(10, 5)) == 1
