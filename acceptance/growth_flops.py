"""Growing a shallow decoder in the middle of training, beside a deep one from scratch and the shallow one, at equal arithmetic.

All arithmetic counts, that before growth too: 6 N a token for N parameters (embeddings are tied to the head and count once).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from acceptance.distillation import pieces
from acceptance.protocol import Arm, Claim, Experiment, Metrics
from acceptance.training import bits_per_byte, final, opened, train, tuned
from uplift.testing.tiny import tiny_causal, write_rows

SHALLOW, DEEP = 2, 4
SHAPE: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "initializer_range": 0.02,
}
"""0.25M parameters with 2 blocks, 0.47M with 4, nearly byte level (320 tokens)."""
STEPS = 300
"""Steps of the shallow model before growth, and of the deep one after it."""
SECTION: dict[str, Any] = {
    "max_length": 320,
    "batch_tokens": 1536,
    "optimizer": {"betas": [0.9, 0.95], "weight_decay": 0.1},
    "schedule": {"use": "wsd"},
}
ROWS, HELD, VALIDATION = 9_000, 800, 300
RATES = (1e-3, 3e-3, 1e-2)
TUNING_SEED = 1000
METHODS = ("stack", "identity", "interleave")
KINDS = ("scratch", *METHODS, "continued", "placebo")


def start(folder: Path, seed: int, layers: int) -> Path:
    """New weights by ``seed``."""
    home = folder / f"start-{layers}-{seed}"
    if not (home / "config.json").exists():
        tiny_causal(home, seed=seed, num_hidden_layers=layers, **SHAPE)
    return home


def parameters(folder: Path, layers: int) -> int:
    """How many a model of so many blocks has."""
    return sum(parameter.numel() for parameter in opened(start(folder, 0, layers), "language").parameters_by_name().values())


def recipe_of(kind: str, seed: int, rate: float, steps: int, folder: Path) -> dict[str, Any]:
    """One arm: which model, which techniques, and so many steps that all arms take the same arithmetic.

    The placebo throws the shallow model's training away and grows one that was never trained: its first half is lost.
    """
    shallow, deep = parameters(folder, SHALLOW), parameters(folder, DEEP)
    total = steps * (shallow + deep)
    long = {"scratch": round(total / deep), "continued": round(total / shallow), "placebo": steps}
    techniques: list[dict[str, Any]] = []
    if kind in METHODS:
        techniques = [{"use": "deepen", "method": kind, "layers": DEEP, "at": 0.5}]
    if kind == "placebo":
        techniques = [{"use": "deepen", "method": "stack", "layers": DEEP}]
    rows, held = pieces(ROWS, HELD)
    section: dict[str, Any] = {"split": {"validation": 0.0, "test": 0.0}}
    for part, texts in (("train", rows), ("validation", held[:VALIDATION]), ("test", held[VALIDATION:])):
        path = folder / f"{part}.jsonl"
        if not path.exists():
            write_rows(path, [{"text": text} for text in texts])
        section[part] = {"use": "jsonl", "path": str(path)}
    layers = DEEP if kind == "scratch" else SHALLOW
    return {
        "model": {"use": "hf", "id": str(start(folder, seed, layers))},
        "data": section,
        "task": {"use": "text"},
        "techniques": techniques,
        "seed": seed,
        "evaluate": {"base": False},
        "train": SECTION | {"steps": long.get(kind, 2 * steps), "lr": rate},
    }


def measured(kind: str, seed: int, rate: float, steps: int, folder: Path) -> Metrics:
    """One training: bits per byte on test, the loss in nats per token on validation, and the arithmetic in 6 N tokens."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    recipe = recipe_of(kind, seed, rate, steps, folder.parent)
    report, _ = train(recipe, folder)
    assert report.cost.steps == recipe["train"]["steps"]
    found = {"bits_per_byte": bits_per_byte(report), "validation_loss": final(report, "validation_loss"), "lr": rate}
    return found | {"steps": float(recipe["train"]["steps"]), "parameters": float(report.cost.trainable_parameters or 0)}


def arm(kind: str, seed: int, folder: Path, steps: int = STEPS) -> Metrics:
    """One arm at its own best rate."""
    kept = folder.parent / f"rate-{kind}-{steps}.json"
    rate = tuned(kept, RATES, lambda rate: measured(kind, TUNING_SEED, rate, steps, folder), "validation_loss")
    return measured(kind, seed, rate, steps, folder)


ARMS: dict[str, Arm] = {kind: partial(arm, kind) for kind in KINDS}
EXPERIMENT = Experiment(
    name="growth_flops",
    techniques=("deepen",),
    question="Does a decoder that grows from 2 to 4 blocks in the middle reach fewer bits per byte than 4 blocks from scratch?",
    budget=f"the arithmetic of {STEPS} steps with 2 blocks and {STEPS} with 4, the best of three rates each",
    arms=ARMS,
    claims=(
        Claim("stack", "scratch", "bits_per_byte", most=0.0, shown=True),
        Claim("stack", "continued", "bits_per_byte", most=0.0, shown=True),
        Claim("stack", "placebo", "bits_per_byte", most=-0.02, shown=True),
        Claim("identity", "stack", "bits_per_byte", most=0.05),
    ),
    seeds=4,
    placebo="placebo",
)
