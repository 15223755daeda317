"""Packing: tokens, targets and weights land where they belong, and nothing is lost or reordered."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st

from uplift.core.values import Encoded, Progress
from uplift.data.packing import pack, plan_steps, sample_generator, share_of_rank, split_micro

LENGTHS = st.lists(st.integers(1, 60), max_size=40)


def encoded(*lengths: int) -> list[Encoded]:
    start, result = 0, []
    for number, length in enumerate(lengths):
        ids = list(range(start, start + length))
        weights = [0.0] + [float(i % 2) for i in range(1, length)]
        result.append(Encoded(f"s{number}", ids, weights, number if number % 2 else None))
        start += length
    return result


@given(LENGTHS, st.integers(1, 100))
def test_steps_cover_in_order_and_keep_the_budget(lengths: list[int], budget: int) -> None:
    steps = plan_steps(lengths, budget)
    assert [position for step in steps for position in step] == list(range(len(lengths)))
    totals = [sum(lengths[position] for position in step) for step in steps]
    assert all(total <= budget or len(step) == 1 for step, total in zip(steps, totals, strict=True))
    for total, following in zip(totals, steps[1:], strict=False):
        assert total + lengths[following[0]] > budget


@given(LENGTHS, st.integers(1, 100))
def test_micro_batches_are_the_step(lengths: list[int], budget: int) -> None:
    items = encoded(*lengths)
    assert [item for part in split_micro(items, budget) for item in part] == items


@given(LENGTHS, st.integers(1, 5))
def test_ranks_share_everything_evenly(lengths: list[int], world: int) -> None:
    items = encoded(*lengths)
    parts = [share_of_rank(items, rank, world) for rank in range(world)]
    assert sorted(item.id for part in parts for item in part) == sorted(item.id for item in items)
    loads = [sum(map(len, part)) for part in parts]
    assert max(loads) - min(loads) <= max(lengths, default=0)
    for part in parts:
        assert [int(item.id[1:]) for item in part] == sorted(int(item.id[1:]) for item in part)


def test_a_packed_row_by_hand() -> None:
    items = [Encoded("a", [5, 6, 7], [0.0, 1.0, 0.5]), Encoded("b", [8], [0.0], 1), Encoded("c", [9, 4], [0.0, 0.0], 0)]
    batch = pack(items, device="cpu", progress=Progress(step=3), seed=11)
    assert batch.ids.tolist() == [[5, 6, 7, 8, 9, 4]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 0, 1]]
    assert batch.targets.tolist() == [[6, 7, -100, -100, 4, -100]]
    assert batch.weights.tolist() == [[1.0, 0.5, 0.0, 0.0, 0.0, 0.0]]
    assert batch.lengths == (3, 1, 2) and batch.labels.tolist() == [-100, 1, 0]
    assert batch.counts == {"tokens": 1.5, "samples": 2.0}
    assert batch.sample_ids == ("a", "b", "c") and batch.progress.step == 3 and batch.seed == 11
    kinds = {batch.ids.dtype, batch.positions.dtype, batch.targets.dtype, batch.labels.dtype}
    assert kinds == {torch.int64} and batch.weights.dtype == torch.float32


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12))
def test_packing_loses_nothing(lengths: list[int]) -> None:
    items = encoded(*lengths)
    batch = pack(items, device="cpu", progress=Progress(), seed=0)
    rows = zip(batch.ids[0].split(lengths), batch.targets[0].split(lengths), batch.weights[0].split(lengths), strict=True)
    for item, (ids, targets, weights) in zip(items, rows, strict=True):
        assert ids.tolist() == list(item.ids)
        assert targets.tolist() == [*list(item.ids)[1:], -100]
        assert weights.tolist() == [*list(item.weights)[1:], 0.0]
    assert batch.counts["tokens"] == sum(sum(item.weights[1:]) for item in items)


@pytest.mark.parametrize("items", [[], [Encoded("a", [], [])], [Encoded("a", [1, 2], [0.0])]])
def test_what_cannot_be_packed(items: list[Encoded]) -> None:
    with pytest.raises(ValueError, match="pack needs"):
        pack(items, device="cpu", progress=Progress(), seed=0)


def test_sample_noise_does_not_depend_on_the_batch() -> None:
    items = encoded(4, 5, 6)
    whole = pack(items, device="cpu", progress=Progress(step=2), seed=1)
    alone = pack(items[1:2], device="cpu", progress=Progress(step=2), seed=1)

    def draw(batch: object, purpose: str, index: int) -> list[float]:
        return torch.rand(3, generator=sample_generator(batch, purpose, index)).tolist()  # type: ignore[arg-type]

    assert draw(whole, "noise", 1) == draw(alone, "noise", 0)
    later = pack(items[1:2], device="cpu", progress=Progress(step=3), seed=1)
    reseeded = pack(items[1:2], device="cpu", progress=Progress(step=2), seed=2)
    others = [draw(whole, "noise", 0), draw(whole, "other", 1), draw(later, "noise", 0), draw(reseeded, "noise", 0)]
    assert len({tuple(values) for values in [draw(whole, "noise", 1), *others]}) == 5
