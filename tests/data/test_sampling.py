"""The training order: a pure permutation of (seed, epoch), weights that act inside an epoch, nothing dropped."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from uplift.core.values import Origin, Sample
from uplift.data.sampling import TURNS, Order


def samples(count: int) -> list[Sample]:
    return [Sample(f"id{index}", Origin("f", index), text=str(index)) for index in range(count)]


def test_each_epoch_is_a_permutation_of_its_own() -> None:
    order = Order(samples(1000), seed=5)
    epochs = [order.epoch(epoch) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(1000)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != list(range(1000))
    assert Order(samples(1000), seed=5).epoch(1) == epochs[1]
    assert Order(samples(1000), seed=6).epoch(1) != epochs[1]


def test_the_order_is_the_same_in_another_process() -> None:
    program = (
        "from uplift.core.values import Origin, Sample; from uplift.data.sampling import Order;"
        "print(Order([Sample(f'id{i}', Origin('f', i), text=str(i)) for i in range(20)], 5).epoch(2))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(Order(samples(20), 5).epoch(2))


def test_positions_are_uniform() -> None:
    """Chi-square over (sample, tenth of the epoch): 190 degrees of freedom or less, limit at about six sigma."""
    count, epochs = 20, 2000
    order = Order(samples(count), seed=1)
    table = np.zeros((count, 10))
    for epoch in range(epochs):
        for position, index in enumerate(order.epoch(epoch)):
            table[index, position * 10 // count] += 1
    expected = epochs / 10
    chi_square = ((table - expected) ** 2 / expected).sum()
    freedom = (count - 1) * 9
    assert abs(chi_square - freedom) < 6 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("weight", [1.0, 3.0, 0.1, 0.0])
def test_equal_weights_are_no_weights_bit_for_bit(weight: float) -> None:
    plain, weighted = Order(samples(333), 7), Order(samples(333), 7, lambda sample, fraction: weight)
    assert [plain.epoch(e) for e in range(3)] == [weighted.epoch(e) for e in range(3)]


def test_weights_act_inside_the_epoch_and_drop_nothing() -> None:
    pool = samples(1600)

    def weight(sample: Sample, fraction: float) -> float:
        return 1.0 if int(sample.text or "0") < 800 * (1 + 2 * fraction) else 0.0

    order = Order(pool, 3, weight).epoch(0, lambda position: position / len(pool))
    assert sorted(order) == list(range(1600))
    assert max(order[:100]) < 800 and max(order[100:200]) >= 800
    # Drawn evenly from what is allowed in each round; the newly allowed do not come in a burst.
    left_old = 800
    for start in range(0, 800, 100):
        drawn = order[start : start + 100]
        allowed = min(1600, 800 + start)
        expected = left_old / (allowed - start)
        old = sum(index < 800 for index in drawn)
        assert abs(old / 100 - expected) < 5 * max(expected * (1 - expected) / 100, 1e-9) ** 0.5
        left_old -= old


def test_weights_are_proportional_at_the_start() -> None:
    heavy = Order(samples(4000), 1, lambda sample, fraction: 3.0 if int(sample.text or "0") % 2 else 1.0).epoch(0)
    share = np.mean([index % 2 for index in heavy[:250]])
    assert abs(share - 0.75) < 5 * (0.75 * 0.25 / 250) ** 0.5


def test_equal_samples_are_distinct_draws() -> None:
    twins = [Sample("same", Origin("f", i), text="t", extras={"occurrence": i} if i else {}) for i in range(50)]
    order = Order(twins, 0).epoch(0)
    assert sorted(order) == list(range(50)) and order != list(range(50))


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_weights_that_are_no_weights(bad: float) -> None:
    with pytest.raises(ValueError, match="finite and not negative"):
        Order(samples(5), 0, lambda sample, fraction: bad).epoch(0)


def test_small_and_empty() -> None:
    assert Order([], 0).epoch(0) == [] == Order([], 0, lambda sample, fraction: 1.0).epoch(0)
    assert sorted(Order(samples(3), 0, lambda sample, fraction: 2.0).epoch(0)) == [0, 1, 2]


def test_a_hundred_thousand_samples_are_fast() -> None:
    start = time.process_time()
    Order(samples(100_000), 0).epoch(0)
    assert time.process_time() - start < 10


# -- versions that take turns ------------------------------------------------------------------------------------------
def with_versions(rows: int, versions: int) -> list[Sample]:
    """Each row, then its other versions behind all rows."""
    plain = samples(rows)
    return plain + [
        Sample(f"{row.id}-{number}", row.origin, text=f"{row.text}-{number}", extras={TURNS: (row.id, 0)})
        for number in range(1, versions)
        for row in plain
    ]


def row_of(index: int, rows: int) -> int:
    return index % rows


def test_versions_of_a_row_take_turns() -> None:
    rows, versions = 300, 3
    order = Order(with_versions(rows, versions), 4)
    epochs = [order.epoch(epoch) for epoch in range(2 * versions)]
    assert len(order) == rows
    assert all(sorted(row_of(index, rows) for index in epoch) == list(range(rows)) for epoch in epochs), "each row once"
    for three in (epochs[:3], epochs[1:4], epochs[3:]):
        assert sorted(index for epoch in three for index in epoch) == list(range(rows * versions)), "each version once in three"
    first = [sum(index // rows == version for index in epochs[0]) for version in range(versions)]
    assert all(70 < count < 130 for count in first), "no epoch belongs to one version"


def test_turns_do_not_change_what_has_one_version_and_obey_weights() -> None:
    pool = [*samples(100), Sample("id7-1", Origin("f", 7), text="x", extras={TURNS: ("id7", 0)})]
    order, plain = Order(pool, 4), Order(pool[:100], 4)
    assert [index for index in order.epoch(1) if index not in (7, 100)] == [index for index in plain.epoch(1) if index != 7]
    last = Order(with_versions(160, 2), 4, lambda sample, fraction: float(row_of(int(sample.text.split("-")[0]), 160) < 80))
    drawn = [row_of(index, 160) for index in last.epoch(0)]
    assert set(drawn[:80]) == set(range(80)) and set(drawn[80:]) == set(range(80, 160))


def test_rows_of_one_name_are_all_seen() -> None:
    """Only what was said to take turns does."""
    twins = [Sample("same", Origin("f", 1), text="a")] * 3
    assert sorted(Order(twins, 4).epoch(0)) == [0, 1, 2]
    other = Sample("other-1", Origin("f", 2), text="b", extras={TURNS: ("other", 0)})
    assert sorted(Order([*twins, other], 4).epoch(0)) == [0, 1, 2, 3]


def test_values_of_an_epoch_are_a_mean_over_turns() -> None:
    order = Order(with_versions(4, 2), 4)
    assert order.mean_epoch([1, 2, 3, 4, 5, 6, 7, 8]) == 18
    assert Order([], 4).mean_epoch([]) == 0 and Order([], 4).epoch(0) == []
    assert sum(len(order.shown(epoch)) for epoch in range(2)) == 8
