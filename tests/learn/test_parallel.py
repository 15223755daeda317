"""Devices, precision and agreement, as far as one process shows them; more in ``tests/equivalence`` and ``tests/faults``."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

from uplift.core.errors import ResourceError
from uplift.core.recipe import Hardware
from uplift.learn.parallel import Parallel, pick_device, pick_precision, processes

CPU = torch.device("cpu")


def test_one_process_agrees_with_itself_and_wraps_nothing() -> None:
    parallel, module = Parallel(CPU), nn.Linear(2, 2)
    assert parallel.first and parallel.wrap(module) is module
    assert parallel.sum([1.5, 2.0]) == [1.5, 2.0]
    assert parallel.any(True) and not parallel.any(False)
    assert parallel.share_text("ü/ä") == "ü/ä"
    parallel.barrier()
    assert isinstance(parallel.accumulating(module, last=False), contextlib.nullcontext)


def test_losses_are_added_up_as_exactly_as_the_device_can() -> None:
    assert Parallel(CPU).exact == torch.float64 and Parallel(torch.device("mps")).exact == torch.float32


def test_only_the_first_process_writes() -> None:
    assert not Parallel(CPU, rank=1, world=2).first


def test_an_absent_device_is_a_resource_error() -> None:
    assert pick_device("cpu") == CPU
    if not torch.accelerator.is_available():
        assert pick_device("auto") == CPU
        with pytest.raises(ResourceError, match="`cuda` is not here") as caught:
            pick_device("cuda")
        assert caught.value.exit_code == 75 and caught.value.fix


def test_a_cpu_computes_in_float32_unless_asked() -> None:
    assert pick_precision("auto", CPU) == torch.float32
    assert pick_precision("fp32", torch.device("cuda")) == torch.float32
    assert pick_precision("bf16", CPU) == torch.bfloat16


def test_mixed_precision_applies_inside_the_block_only() -> None:
    a = torch.randn(3, 3)
    with Parallel(CPU, precision=torch.bfloat16).autocast():
        assert (a @ a).dtype == torch.bfloat16
    with Parallel(CPU).autocast():
        assert (a @ a).dtype == torch.float32
    assert (a @ a).dtype == torch.float32


def test_without_a_launcher_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with processes(Hardware(device="cpu")) as parallel:
        assert (parallel.rank, parallel.world, parallel.device) == (0, 1, CPU)
    assert not torch.distributed.is_initialized()


def test_a_group_of_one_that_a_launcher_made_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    with processes(Hardware(device="cpu")) as parallel:
        assert parallel.world == 1
