"""The machine is measured, not assumed."""

from __future__ import annotations

import pytest
import torch

from uplift.study import machine


@pytest.mark.parametrize(
    ("cores", "load", "threads"),
    [(2, 0.0, 2), (2, 0.3, 2), (2, 1.2, 1), (2, 9.0, 1), (16, 4.4, 12), (1, 0.0, 1)],
)
def test_threads_are_the_cores_that_others_leave(cores: int, load: float, threads: int) -> None:
    assert machine.choose_threads(cores, load) == threads


def test_measurement_is_sane_cached_and_leaves_threads_alone() -> None:
    before = torch.get_num_threads()
    first = machine.measure("cpu", 1)
    assert torch.get_num_threads() == before
    assert first is machine.measure("cpu", 1)
    assert 1e8 < first.gemm_flops < 1e14 and 0 < first.bf16_ratio < 64
    assert 0 < first.memory_available <= first.memory_total and first.cores >= 1
    assert "GFLOP/s" in first.describe()


def test_peak_memory_follows_a_reset() -> None:
    before = machine.peak_memory_bytes()
    block = bytearray(200 * 2**20)
    block[:: 2**12] = b"x" * len(block[:: 2**12])
    high = machine.peak_memory_bytes()
    assert high >= before and high > 200 * 2**20
    del block
    machine.reset_peak_memory()
    assert machine.peak_memory_bytes() <= high
