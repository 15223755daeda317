"""Muon and schedule-free AdamW beside a tuned AdamW: bits per byte of a small decoder on source code at the end of training."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from acceptance.distillation import pieces
from acceptance.protocol import Arm, Claim, Experiment, Metrics
from acceptance.training import bits_per_byte, final, train, tuned
from uplift.testing.tiny import tiny_causal, write_rows

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "initializer_range": 0.02,
}
"""0.23M parameters, nearly byte level (320 tokens)."""
STEPS = 600
SECTION: dict[str, Any] = {"max_length": 320, "batch_tokens": 2048}
ROWS, HELD, VALIDATION = 9_000, 800, 300
TUNING_SEED = 1000
ADAMW: dict[str, Any] = {"optimizer": {"use": "adamw", "betas": [0.9, 0.95], "weight_decay": 0.1}, "schedule": {"use": "wsd"}}
MUON: dict[str, Any] = {"optimizer": {"use": "muon", "betas": [0.9, 0.95], "weight_decay": 0.1}, "schedule": {"use": "wsd"}}
FREE: dict[str, Any] = {
    "optimizer": {"use": "schedule_free", "betas": [0.9, 0.99], "weight_decay": 0.1},
    "schedule": {"use": "constant"},
}
SECTIONS = {"adamw": ADAMW, "muon": MUON, "schedule_free": FREE, "frobenius": MUON}
RATES = {
    "adamw": (1e-3, 3e-3, 1e-2),
    "muon": (3e-3, 1e-2, 3e-2),
    "schedule_free": (1e-3, 3e-3, 1e-2),
    "frobenius": (1e-3, 3e-3, 1e-2),
}


def normalised(matrix: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The placebo: as large as an orthogonal matrix, but with the singular values in their old proportions."""
    return matrix / matrix.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7) * min(matrix.shape[-2:]) ** 0.5


def recipe_of(folder: Path, seed: int) -> dict[str, Any]:
    """New weights by ``seed``, and always the same rows (their order is the seed's)."""
    start = folder / f"start-{seed}"
    if not (start / "config.json").exists():
        tiny_causal(start, seed=seed, **SHAPE)
    rows, held = pieces(ROWS, HELD)
    section: dict[str, Any] = {"split": {"validation": 0.0, "test": 0.0}}
    for part, texts in (("train", rows), ("validation", held[:VALIDATION]), ("test", held[VALIDATION:])):
        path = folder / f"{part}.jsonl"
        if not path.exists():
            write_rows(path, [{"text": text} for text in texts])
        section[part] = {"use": "jsonl", "path": str(path)}
    model = {"use": "hf", "id": str(start)}
    return {"model": model, "data": section, "task": {"use": "text"}, "seed": seed, "evaluate": {"base": False}}


def measured(name: str, seed: int, rate: float, folder: Path, steps: int) -> Metrics:
    """One training; the loss in nats per token on validation, bits per byte on test."""
    swapped = patch("uplift.learn.muon.orthogonalized", normalised) if name == "frobenius" else nullcontext()
    with swapped:
        section = SECTION | SECTIONS[name] | {"steps": steps, "lr": rate}
        report, _ = train(recipe_of(folder.parent, seed), folder, train=section)
    found = {"bits_per_byte": bits_per_byte(report), "seconds": report.cost.seconds or 0.0}
    return found | {"validation_loss": final(report, "validation_loss"), "lr": rate}


def arm(name: str, seed: int, folder: Path, steps: int = STEPS) -> Metrics:
    """One optimizer at its own best rate."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    kept = folder.parent / f"rate-{name}-{steps}.json"
    rate = tuned(kept, RATES[name], lambda rate: measured(name, TUNING_SEED, rate, folder, steps), "validation_loss")
    return measured(name, seed, rate, folder, steps)


ARMS: dict[str, Arm] = {name: partial(arm, name) for name in SECTIONS}
EXPERIMENT = Experiment(
    name="muon_adamw",
    techniques=(),
    question="Does Muon reach fewer bits per byte than a tuned AdamW in 1.2M tokens, and schedule-free as few?",
    budget=f"{STEPS} steps of {SECTION['batch_tokens']} tokens, the best of three rates each; Muon's steps cost more time",
    arms=ARMS,
    claims=(
        Claim("muon", "adamw", "bits_per_byte", most=-0.05, shown=True),
        Claim("muon", "frobenius", "bits_per_byte", most=-0.05, shown=True),
        Claim("schedule_free", "adamw", "bits_per_byte", most=0.05),
    ),
    seeds=4,
    placebo="frobenius",
)
