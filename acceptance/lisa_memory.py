"""LISA beside full fine-tuning and beside LoRA of the same size: optimizer memory, and what it costs in loss."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

from acceptance.protocol import Claim, Experiment, Metrics
from acceptance.small import base, recipe
from acceptance.training import best, bits_per_byte, cut_up, final, modules, reviews, train
from uplift.testing.tiny import Row, write_rows

PIECE = 400
"""Characters of a row."""
SHAPE = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 8}
KNOWN = {"epochs": 1, "batch_tokens": 2048, "lr": 2e-3, "max_length": 256}
SECTION = {"epochs": 1, "batch_tokens": 1024, "max_length": 256}
RATES = {"full": (5e-4, 1e-3, 2e-3), "lisa": (5e-4, 1e-3, 2e-3), "lora": (2e-3, 5e-3, 1e-2), "ends": (1e-3, 2e-3, 5e-3)}
ARMS: dict[str, list[dict[str, Any]]] = {
    "full": [],
    "lisa": [{"use": "lisa", "blocks": 2}],
    "lora": [{"use": "lora", "rank": 17, "alpha": 34.0}],
    "ends": [{"use": "freeze", "ratio": 1.0, "embeddings": False}],
}


def prose(count: int, seed: int) -> list[Row]:
    """The beginnings of film reviews."""
    found = [text[:PIECE] for text, _ in reviews()]
    return [{"text": text} for text in random.Random(seed).sample(sorted(found), count)]


def code(seed: int, part: int, count: int) -> list[Row]:
    """Pieces of the standard library of this Python; modules of different ``part`` (0 or 1) are different."""
    return [{"text": piece} for piece in random.Random(seed).sample(cut_up(modules()[part::2], PIECE), count)]


def arm(kind: str, seed: int, folder: Path) -> Metrics:
    """One epoch of code at each rate, the one with the lowest validation loss counts: bits per byte on other modules."""
    home = folder.parent
    model = base(home / f"base-{seed}", prose(2000, seed), seed, KNOWN, "text", **SHAPE)
    path, looks = write_rows(home / f"code-{seed}.jsonl", code(seed, 0, 500)), code(seed, 1, 400)
    data = {
        part: {"use": "jsonl", "path": str(write_rows(home / f"{part}-{seed}.jsonl", rows))}
        for part, rows in (("validation", looks[:200]), ("test", looks[200:]))
    }
    everything = 2 * (model / "model.safetensors").stat().st_size

    def at(rate: float) -> Metrics:
        section = {**SECTION, "lr": rate}
        report, _ = train(recipe(model, path, seed, "text", data=data, train=section, techniques=ARMS[kind]), folder)
        memory = 100.0 * (report.cost.optimizer_bytes or 0) / everything
        found = {"bits_per_byte": bits_per_byte(report), "optimizer_memory": memory}
        return found | {"validation_loss": final(report, "validation_loss")}

    return best(RATES[kind], at, "validation_loss")


EXPERIMENT = Experiment(
    name="lisa_memory",
    techniques=("lisa",),
    question="Does LISA come near full fine-tuning with 40 % of its optimizer memory, and beat LoRA of the same memory?",
    budget="one epoch of the same 500 pieces of Python code, the best of three learning rates by validation loss",
    arms={kind: partial(arm, kind) for kind in ARMS},
    claims=(
        Claim("lisa", "full", "optimizer_memory", most=-60.0),
        Claim("lisa", "full", "bits_per_byte", most=0.03),
        Claim("lisa", "lora", "bits_per_byte", most=0.0, shown=True),
        Claim("lisa", "ends", "bits_per_byte", most=0.0, shown=True),
    ),
    seeds=3,
    placebo="ends",
)
