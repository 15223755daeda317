"""The benchmark: Uplift against each peer, two workers taking turns step by step, one table at the end."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench import ours, peers
from bench.gate import Gate, Step, Worker
from bench.workload import (
    SMOLLM2,
    STUDENT,
    TEN,
    TEN_SHORT,
    THIRTY,
    TINY,
    TINY_BLOCKS,
    WARMUP,
    Shape,
    Work,
    model_flops,
)
from uplift.core.errors import UpliftError
from uplift.core.storage import write_atomically
from uplift.study.machine import gemm_flops, other_load, physical_cores

RESULTS = Path(__file__).parent / "results"
PEAK_SIZE, PEAK_SECONDS = 1024, 2.0
SHORT_DOCUMENTS = 32
"""Short documents of a step: about as many tokens as the other works have."""
SMALL_COUNTED = 3
"""Counted steps of small models for one of large ones: they are short."""
SAME_LOSS = 1e-4
"""Largest relative difference of the first step's loss at which two systems are said to do the same work (fp32)."""
VERSIONED = ("llm-uplift", "torch", "transformers", "trl", "peft", "accelerate")


@dataclass(frozen=True)
class Peer:
    """A system to compare with. ``kind`` chooses the bar; ``same_loss``: on the same documents a step it has our loss.

    ``fits``: the works that it is a sensible choice for.
    """

    name: str
    train: Callable[[Work, Gate], None]
    kind: str
    same_loss: bool = True
    fits: Callable[[Work], bool] = lambda work: True


PEERS = (
    Peer("transformers Trainer", peers.train_trainer, "default"),
    Peer("TRL SFTTrainer", peers.train_trl, "default", fits=lambda work: not work.pretrain),
    Peer("TRL packing=True", peers.train_trl_packed, "packed", same_loss=False),
    Peer("loop, one document a forward", peers.train_by_document, "tuned"),
    Peer("loop, grouped by length", peers.train_grouped, "tuned", same_loss=False, fits=lambda work: not work.blocks),
    Peer("loop, all blocks in a forward", peers.train_together, "tuned", fits=lambda work: work.blocks),
    Peer("loop, live teacher", peers.train_taught, "live", same_loss=False),
    Peer("Uplift, live teacher", ours.train_live, "live", same_loss=False),
)
BARS = {
    "full": {"default": 2.0, "packed": 1.5, "tuned": 1.25},
    "lora": {"default": 2.0, "packed": 1.5, "tuned": 1.35},
    "top": {"tuned": 2.5},
    "10M blocks": {"default": 1.05, "tuned": 1.05},
    "30M blocks": {"default": 1.05, "tuned": 1.05},
    "distill": {"live": 4.0},
    "10M short": {"default": 2.0, "packed": 2.0, "tuned": 1.0},
}
"""Least speed of Uplift as a multiple of the peer's."""


@dataclass(frozen=True)
class Pair:
    """What one run of Uplift beside one peer gave. Speeds in tokens per second, memory in bytes; ``flops``: needed per token.

    ``ratio``: how many times faster Uplift is by the clock, ``cpu_ratio`` by CPU time: medians over the pairs of steps.
    ``difference``: relative difference of the first step's loss, from equal weights on equal documents; None when the peer
    saw others, or has another loss. ``drift``: the largest over the later steps, after real updates.
    """

    work: str
    peer: str
    kind: str
    bar: float
    ratio: float
    cpu_ratio: float
    speed: float
    peer_speed: float
    memory: int
    peer_memory: int
    flops: float
    difference: float | None
    drift: float | None
    load: float

    @property
    def problems(self) -> list[str]:
        """What is not reached, by how much; empty: all bars are met."""
        found = [f"short by {self.bar - self.ratio:.2f}x"] if self.ratio < self.bar else []
        if self.memory > self.peer_memory:
            found.append(f"{(self.memory - self.peer_memory) / 2**30:.1f} GiB more")
        if self.difference is not None and not self.difference <= SAME_LOSS:
            found.append("other loss")
        return found


def run_pair(work: Work, peer: Peer, verbose: bool = False) -> Pair:
    """Uplift and one peer, alternating; whoever begins changes each step, so that a drifting machine favours neither."""
    own = Worker("Uplift", partial(ours.train, work), verbose)
    other = Worker(peer.name, partial(peer.train, work), verbose)
    load = other_load()
    try:
        for number in range(work.turns):
            for worker in (own, other) if number % 2 == 0 else (other, own):
                worker.step(number)
    finally:
        own.close()
        other.close()
    documents = [document for number in range(work.steps) for document in work.step(number)]
    per_token = model_flops(work, documents) / sum(map(len, documents))
    difference, drift = _loss_differences(own.steps, other.steps) if peer.same_loss else (None, None)
    return Pair(
        work.name,
        peer.name,
        peer.kind,
        BARS[work.name][peer.kind],
        paired_ratio(own.steps[work.warmup :], other.steps[work.warmup :], lambda step: step.wall),
        paired_ratio(own.steps[work.warmup :], other.steps[work.warmup :], lambda step: step.cpu),
        own.speed(work.warmup),
        other.speed(work.warmup),
        own.peak,
        other.peak,
        per_token,
        difference,
        drift,
        load,
    )


def paired_ratio(own: Sequence[Step], other: Sequence[Step], seconds: Callable[[Step], float]) -> float:
    """Median over the turns of our tokens per second to the peer's: the two steps of a turn meet the machine in one mood."""
    return statistics.median(a.tokens / seconds(a) / (b.tokens / seconds(b)) for a, b in zip(own, other, strict=True))


def _loss_differences(own: list[Step], other: list[Step]) -> tuple[float, float]:
    if [step.tokens for step in own] != [step.tokens for step in other]:
        return math.inf, math.inf
    differences = [abs(a.loss - b.loss) / abs(b.loss) for a, b in zip(own, other, strict=True)]
    return differences[0], max(differences[1:], default=0.0)


# -- what comes out ----------------------------------------------------------------------------------------------------
def table_of(pairs: list[Pair], peak: float, title: str) -> Table:
    """The one table. ``peak``: FLOP/s of the machine's matrix product."""
    table = Table(title=title, title_justify="left")
    headings = (
        "peer",
        "peer tok/s",
        "Uplift tok/s",
        "faster",
        "by CPU time",
        "bar",
        "of GEMM peak",
        "peak GiB",
        "loss differs by",
        "",
    )
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("peer", "") else "right")
    for index, pair in enumerate(pairs):
        table.add_row(
            f"{pair.work}: {pair.peer}",
            f"{pair.peer_speed:.1f}",
            f"{pair.speed:.1f}",
            f"{pair.ratio:.2f}x",
            f"{pair.cpu_ratio:.2f}x",
            f"{pair.bar:.2f}x",
            f"{pair.peer_speed * pair.flops / peak:.0%} / {pair.speed * pair.flops / peak:.0%}",
            f"{pair.peer_memory / 2**30:.1f} / {pair.memory / 2**30:.1f}",
            "not comparable" if pair.difference is None else f"{pair.difference:.0e} ({pair.drift:.0e})",
            ", ".join(pair.problems) or "PASS",
            end_section=index + 1 < len(pairs) and pairs[index + 1].work != pair.work,
        )
    return table


def machine_record(threads: int, load: float) -> dict[str, Any]:
    """Where and with what this was measured."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor_name(),
        "cores": physical_cores(),
        "threads": threads,
        "load_before": round(load, 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in VERSIONED},
    }


def processor_name() -> str:
    """The processor's model, as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def pair_record(pair: Pair) -> dict[str, Any]:
    """A pair as JSON values."""
    values = {name: round(value, 6) if isinstance(value, float) else value for name, value in vars(pair).items()}
    return values | {"difference": pair.difference, "drift": pair.drift, "problems": pair.problems}


def measured_peak(threads: int) -> float:
    """FLOP/s of a large fp32 matrix product here and now, with this many threads."""
    torch.set_num_threads(threads)
    return gemm_flops(torch.device("cpu"), torch.float32, PEAK_SIZE, PEAK_SECONDS)


def works_of(only: str | None, tiny: bool, counted: int, threads: int) -> list[Work]:
    """Full fine-tuning, LoRA of rank 16, the top third of the layers from the second epoch on, distillation from then on,
    pretraining; or one of them.
    """
    shape: Shape = TINY if tiny else SMOLLM2
    full = Work("full", shape, steps=WARMUP + counted, threads=threads)
    chosen = [full, replace(full, name="lora", rank=16), replace(full, name="top", frozen=shape.layers - -(-shape.layers // 3))]
    chosen += [replace(full, name="distill", shape=TINY if tiny else STUDENT, teacher=shape, steps=counted)]
    steps = WARMUP + SMALL_COUNTED * counted
    blocks = replace(full, name="10M blocks", shape=TINY_BLOCKS if tiny else TEN, pretrain=True, steps=steps)
    chosen += [
        blocks,
        replace(blocks, name="30M blocks", shape=TINY_BLOCKS if tiny else THIRTY),
        replace(blocks, name="10M short", shape=TINY if tiny else TEN_SHORT, batch=SHORT_DOCUMENTS),
    ]
    return [work for work in chosen if only in (None, "pretrain" if work.pretrain else work.name)]


@dataclass
class Outcome:
    """All pairs of one benchmark, the peers that could not run (and why), and the machine's peak in FLOP/s."""

    machine: dict[str, Any]
    peak: float
    pairs: list[Pair] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)

    @property
    def reached(self) -> bool:
        """Whether every pair was measured and every bar is met."""
        return bool(self.pairs) and not self.failures and not any(pair.problems for pair in self.pairs)

    def write(self, path: Path) -> None:
        """Keep everything as JSON."""
        machine = self.machine | {"gemm_gflops": round(self.peak / 1e9, 1)}
        record = {"machine": machine, "pairs": [pair_record(pair) for pair in self.pairs], "failures": self.failures}
        write_atomically(path, json.dumps(record, indent=1) + "\n")


def run(
    *,
    only: str | None = None,
    peer: str | None = None,
    counted: int = 3,
    threads: int | None = None,
    tiny: bool = False,
    verbose: bool = False,
    path: Path = RESULTS / "training.json",
    console: Console | None = None,
) -> Outcome:
    """Measure all pairs, print the table and write it to ``path``. ``peer``: only peers whose name contains this."""
    console, threads = console or Console(width=170), threads or physical_cores()
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)  # the workers' processes read these
    outcome = Outcome(machine_record(threads, other_load()), measured_peak(threads))
    console.print(f"{outcome.machine['processor']}: {threads} threads, load of others {outcome.machine['load_before']}")
    chosen = [candidate for candidate in PEERS if peer is None or peer.lower() in candidate.name.lower()]
    for work in works_of(only, tiny, counted, threads):
        for candidate in (candidate for candidate in chosen if candidate.kind in BARS[work.name] and candidate.fits(work)):
            _measure(work, candidate, outcome, verbose, console)
            outcome.peak = max(outcome.peak, measured_peak(threads))  # other work can only make it look lower
            outcome.write(path)
    scale = "toy shapes" if tiny else "SmolLM2-135M shape, pretraining 10M and 30M"
    title = f"{scale}, fp32; LoRA r16 on all linear layers; top third; pairs are peer / Uplift"
    console.print(table_of(outcome.pairs, outcome.peak, title))
    return outcome


def _measure(work: Work, peer: Peer, outcome: Outcome, verbose: bool, console: Console) -> None:
    try:
        pair = run_pair(work, peer, verbose)
    except UpliftError as error:
        outcome.failures.append({"work": work.name, "peer": peer.name, "error": str(error)})
        console.print(f"{work.name}: {peer.name}: NOT MEASURED: {error}", highlight=False, markup=False)
        return
    outcome.pairs.append(pair)
    console.print(f"{work.name}: {pair.peer}: {pair.ratio:.2f}x by the clock, {pair.cpu_ratio:.2f}x by CPU time")
