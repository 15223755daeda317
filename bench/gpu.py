"""``python -m bench.gpu``: Uplift against transformers' Trainer on one accelerator, bf16, also as a share of its measured peak.

``--device cpu --tiny`` runs the same code with a toy shape, so that it is executed where there is no accelerator.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench import ours, peers
from bench.gate import Worker
from bench.workload import BILLION, SMALL, TINY, Shape, Work, model_flops
from uplift.core.storage import write_atomically
from uplift.study.machine import gemm_flops

RESULTS = Path(__file__).parent / "results"
WARMUP = 5
"""Steps that are not counted: compilation and the allocator."""
PEAK_SIZE, PEAK_SECONDS = 8192, 2.0


def work_of(shape: Shape, counted: int, batch: int) -> Work:
    """Full fine-tuning of ``shape`` on ``batch`` documents a step (about 480 tokens each)."""
    return Work(f"full {shape.name}", shape, None, WARMUP + counted, batch=batch)


def workers_of(work: Work, device: str, compiled: bool, verbose: bool) -> list[Worker]:
    """Uplift compiled or not, and the Trainer, each with bf16 autocast over fp32 weights and fused AdamW."""
    own = partial(ours.train, work, device=device, precision=torch.bfloat16, compiled=compiled)
    changes: dict[str, Any] = {"bf16": True, "optim": "adamw_torch_fused", "use_cpu": device == "cpu"}
    name = "Uplift, compiled blocks" if compiled else "Uplift"
    return [
        Worker(name, own, verbose),
        Worker("transformers Trainer", partial(peers.train_trainer, work, changes=changes), verbose),
    ]


def measure(work: Work, device: str, peak: float, compiled: bool, verbose: bool) -> list[dict[str, Any]]:
    """One record per system: tokens/s, share of the peak, memory, first loss. The systems take turns."""
    workers = workers_of(work, device, compiled, verbose)
    try:
        for number in range(work.steps):
            for worker in workers if number % 2 == 0 else reversed(workers):
                worker.step(number)
    finally:
        for worker in workers:
            worker.close()
    documents = [document for number in range(work.steps) for document in work.step(number)]
    per_token = model_flops(work, documents) / sum(map(len, documents))
    return [
        {
            "work": work.name,
            "system": worker.name,
            "tokens_per_second": round(worker.speed(WARMUP), 1),
            "peak_share": round(worker.speed(WARMUP) * per_token / peak, 4),
            "memory_gib": round(worker.peak / 2**30, 2),
            "first_loss": worker.steps[0].loss,
        }
        for worker in workers
    ]


def table_of(records: list[dict[str, Any]], title: str) -> Table:
    """The one table."""
    table = Table(title=title, title_justify="left")
    for heading in ("work", "system", "tok/s", "of bf16 GEMM peak", "peak GiB", "first loss"):
        table.add_column(heading, justify="left" if heading in ("work", "system") else "right")
    for r in records:
        cells = (f"{r['tokens_per_second']:.0f}", f"{r['peak_share']:.0%}", f"{r['memory_gib']:.1f}", f"{r['first_loss']:.4f}")
        table.add_row(r["work"], r["system"], *cells)
    return table


def arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", choices=("124M", "1B", "both"), default="both")
    parser.add_argument("--tiny", action="store_true", help="a toy shape: checks the benchmark itself")
    parser.add_argument("--no-compile", action="store_true", help="leave the blocks as they are")
    parser.add_argument("--batch", type=int, default=32, help="documents of a step")
    parser.add_argument("--steps", type=int, default=15, help="counted steps")
    parser.add_argument("--verbose", action="store_true", help="let the workers print")
    return parser.parse_args()


def main() -> int:
    """Measure, print, and write ``results/gpu.json`` (``gpu-tiny.json`` with ``--tiny``)."""
    options, console = arguments(), Console(width=140)
    device = torch.device(options.device)
    size, seconds = (256, 0.1) if options.tiny else (PEAK_SIZE, PEAK_SECONDS)
    peak = gemm_flops(device, torch.bfloat16, size, seconds)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else options.device
    title = f"{name}: {peak / 1e12:.1f} TFLOP/s in a bf16 matrix product of {size}"
    shapes = [TINY] if options.tiny else {"124M": [SMALL], "1B": [BILLION], "both": [SMALL, BILLION]}[options.shape]
    compiled = not options.no_compile and device.type == "cuda"
    records: list[dict[str, Any]] = []
    for shape in shapes:
        work = replace(work_of(shape, options.steps, options.batch), threads=1 if options.tiny else 4)
        records += measure(work, options.device, peak, compiled, options.verbose)
        record = {"device": name, "torch": torch.__version__, "bf16_flops": peak, "records": records}
        write_atomically(RESULTS / ("gpu-tiny.json" if options.tiny else "gpu.json"), json.dumps(record, indent=1) + "\n")
    console.print(table_of(records, title))
    return 0


if __name__ == "__main__":
    sys.exit(main())
