"""What this machine can do now: arithmetic peak, memory, cores and load, measured once per process.

The peak is a measured matrix multiplication, never a data sheet; speeds elsewhere are stated as a share of it.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch

GEMM_SIZE = 1024
GEMM_SECONDS = 0.15
"""Time spent on each measured precision."""
BUSY_SECONDS = 0.25
"""Time over which other processes are watched."""


@dataclass(frozen=True)
class Machine:
    """Cores, speed and memory (bytes). ``load``: cores' worth of other work.

    ``gemm_flops``: fp32 FLOP/s of one square product with ``threads`` threads, or on the GPU. ``bf16_ratio``: bf16 speed over
    fp32 speed; far below 1 on CPUs without bf16 units.
    """

    device: str
    cores: int
    load: float
    threads: int
    gemm_flops: float
    bf16_ratio: float
    memory_total: int
    memory_available: int

    @property
    def busy(self) -> bool:
        """Whether other work holds half a core or more, so that timings will wander."""
        return self.load >= 0.5

    def describe(self) -> str:
        """One line for people."""
        where = f"{self.cores} cores, load {self.load:.1f}, {self.threads} threads" if self.device == "cpu" else self.device
        speed = f"{self.gemm_flops / 1e9:.0f} GFLOP/s fp32 (bf16 {self.bf16_ratio:.2f}x)"
        return f"{where}, {speed}, {self.memory_available / 2**30:.1f} GiB free"


def physical_cores() -> int:
    """Cores this process may use: physical ones, bounded by its CPU affinity."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed))


def load_average() -> float:
    """Runnable processes over the last minute, this one included; 0 where the system does not say."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return 0.0


def cores_held_by_others(seconds: float = BUSY_SECONDS) -> float:
    """Cores that other processes keep busy, seen over ``seconds`` in which this process sleeps."""
    own = psutil.Process()
    started, before, mine = time.perf_counter(), psutil.cpu_times(), own.cpu_times()
    time.sleep(seconds)
    elapsed, after, mine_after = (
        time.perf_counter() - started,
        psutil.cpu_times(),
        own.cpu_times(),
    )
    idle = sum(getattr(after, name, 0.0) - getattr(before, name, 0.0) for name in ("idle", "iowait"))
    used = (psutil.cpu_count() or 1) - idle / elapsed
    return max(
        0.0,
        used - (mine_after.user + mine_after.system - mine.user - mine.system) / elapsed,
    )


def other_load() -> float:
    """Cores' worth of work by other processes: the lower of the last minute's load and what is busy right now.

    The load average alone would count this process's own earlier training, the present alone any short burst.
    """
    return min(load_average(), cores_held_by_others())


def choose_threads(cores: int | None = None, load: float | None = None) -> int:
    """Threads for torch: the cores that other work leaves free, at least 1.

    Two threads on one free core are slower than one thread (the threads wait for each other), so load is subtracted.
    """
    cores = physical_cores() if cores is None else cores
    load = other_load() if load is None else load
    return max(1, min(cores, round(cores - load)))


def gemm_flops(
    device: torch.device,
    dtype: torch.dtype,
    size: int = GEMM_SIZE,
    seconds: float = GEMM_SECONDS,
) -> float:
    """Best measured FLOP/s of a ``size``-square product in ``dtype`` within about ``seconds``."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2))
    best, deadline = float("inf"), time.perf_counter() + seconds
    while True:
        started = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
        if time.perf_counter() > deadline:
            return 2 * size**3 / best


@cache
def measure(device: str = "cpu", threads: int | None = None) -> Machine:
    """Measure the machine for ``device`` with ``threads`` torch threads (default: those free now); cached per process.

    The number of torch threads is restored afterwards.
    """
    load, cores = other_load(), physical_cores()
    threads = choose_threads(cores, load) if threads is None else threads
    before, place = torch.get_num_threads(), torch.device(device)
    torch.set_num_threads(threads)
    try:
        fp32 = gemm_flops(place, torch.float32)
        bf16 = gemm_flops(place, torch.bfloat16)
    finally:
        torch.set_num_threads(before)
    total, available = _memory(place)
    return Machine(device, cores, load, threads, fp32, bf16 / fp32, total, available)


def peak_memory_bytes() -> int:
    """Most memory held since ``reset_peak_memory`` (else since the start): of the CUDA device if used, else of this process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return max(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count()))
    found: list[int] = []
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    return found[0] if found else int(psutil.Process().memory_info().rss)


def reset_peak_memory() -> None:
    """Start a new count for ``peak_memory_bytes``; does nothing where the system cannot."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)
    with suppress(OSError):
        control = os.open("/proc/self/clear_refs", os.O_WRONLY)  # a switch of the Linux kernel, not a file
        try:
            os.write(control, b"5")
        finally:
            os.close(control)


def _memory(device: torch.device) -> tuple[int, int]:
    """Total and free bytes of the device's memory."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total, free
    memory = psutil.virtual_memory()
    return memory.total, memory.available
