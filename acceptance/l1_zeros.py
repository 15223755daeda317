"""Half of the weights exactly zero by proximal L1, beside no penalty, and beside cutting the smallest half afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from acceptance.protocol import Claim, Experiment, Metrics
from acceptance.training import REVIEWS, accuracy, evaluated, few_reviews, final, opened, train, tuned
from uplift.core.storage import write_atomically
from uplift.model.language_model import LanguageModel
from uplift.techniques.regularize.l1_proximal import zero_share

STRENGTHS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
RATES = (5e-4, 1e-3, 2e-3)
ROWS, SECTION = 4000, {"epochs": 4}
MODEL: dict[str, Any] = {
    "use": "blank",
    "parameters": "1M",
    "context": 128,
    "tokenizer": {"use": "train", "kind": "bpe", "vocabulary": 2048},
}
HALF, MARGIN = 50.0, 1.0
"""Per cent of zeros; the strength is chosen with a margin, since other seeds give a little more or less."""


def matrices(model: LanguageModel) -> list[torch.Tensor]:
    """What `l1_proximal` shrinks by default: the matrices of the layers."""
    named = model.parameters_by_name()
    return [p for name, p in named.items() if p.ndim >= 2 and 1 <= model.depth(name) <= len(model.layers)]


def recipe(seed: int, folder: Path) -> dict[str, Any]:
    """So many reviews, drawn by ``seed``."""
    return REVIEWS | {"model": MODEL, "data": few_reviews(folder.parent, ROWS, seed)}


def tuned_rate(folder: Path) -> float:
    """The better of two learning rates without a penalty, on the first seed."""

    def at(rate: float) -> Metrics:
        report, _ = train(recipe(0, folder), folder, train={**SECTION, "lr": rate}, seed=0)
        return {"loss": final(report, "validation_loss")}

    return tuned(folder.parent / "rate.json", RATES, at, "loss")


def plain(seed: int, folder: Path) -> Metrics:
    """No penalty."""
    home = folder.parent / f"plain-{seed}"
    report, run = train(recipe(seed, folder), home, train={**SECTION, "lr": tuned_rate(folder)}, seed=seed)
    (run / "model").rename(home / "model")
    return {"accuracy": accuracy(report), "zeros": 0.0}


def cut(seed: int, folder: Path) -> Metrics:
    """The plain model with the smaller half of each matrix set to zero after training."""
    home = folder.parent / f"plain-{seed}" / "model"
    if not home.is_dir():
        plain(seed, folder)
    model = opened(home, "class")
    with torch.no_grad():
        for weight in matrices(model):
            limit = weight.abs().flatten().kthvalue(weight.numel() // 2).values
            weight[weight.abs() <= limit] = 0.0
    zeros = 100.0 * zero_share(matrices(model))
    model.save(home.with_name("cut"))
    return {"accuracy": evaluated(home.with_name("cut"), recipe(seed, folder), seed=seed), "zeros": zeros}


def penalised(strength: float, seed: int, folder: Path) -> Metrics:
    """The same training with the penalty."""
    techniques = [{"use": "l1_proximal", "strength": strength}]
    section = {**SECTION, "lr": tuned_rate(folder)}
    report, run = train(recipe(seed, folder), folder, train=section, techniques=techniques, seed=seed)
    zeros = 100.0 * zero_share(matrices(opened(run / "model", "class")))
    return {"accuracy": accuracy(report), "zeros": zeros, "strength": strength}


def proximal(seed: int, folder: Path) -> Metrics:
    """The weakest penalty that leaves half of the weights exactly zero on the first seed, for all seeds the same."""
    kept = folder.parent / "strength.json"
    if not kept.exists():
        tried = (penalised(strength, 0, folder) for strength in STRENGTHS)
        write_atomically(kept, json.dumps(next(found for found in tried if found["zeros"] >= HALF + MARGIN)))
    first: Metrics = json.loads(kept.read_text(encoding="utf-8"))
    return first if seed == 0 else penalised(first["strength"], seed, folder)


EXPERIMENT = Experiment(
    name="l1_zeros",
    techniques=("l1_proximal",),
    question="Can half of a new 1M classifier's weights be exactly zero at the cost of at most 1 point on film reviews?",
    budget=f"4 epochs of the same {ROWS:,} reviews at the rate that is best without a penalty",
    arms={"plain": plain, "l1_proximal": proximal, "magnitude_cut": cut},
    claims=(
        Claim("l1_proximal", "plain", "accuracy", least=-1.0),
        Claim("l1_proximal", "plain", "zeros", least=HALF),
        Claim("l1_proximal", "magnitude_cut", "accuracy", least=0.0),
    ),
    seeds=5,
)
