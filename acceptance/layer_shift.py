"""New input or new labels, few rows: which layers must train, and whether `surgical` finds one of them by itself.

The task with known truth: a question of 8 letters, the answer is how many of them belong to a secret half of the alphabet.
Shift ``input``: four letters of the half and four others trade places, so only the letters' meaning is wrong, which no
function of the old count can mend. Shift ``labels``: every count gets another digit, so only the last step is wrong, and no
other reading of the letters can mend it.
"""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

from acceptance.protocol import Claim, Experiment, Metrics
from acceptance.small import base, chat_rows, recalled, recipe
from acceptance.training import best, final, opened, train
from uplift.testing.tiny import Row, write_rows

LETTERS = "BCDFGJKLMNPQRVXZ"
LENGTH, ROWS = 8, 40
RATES = (5e-4, 1e-3, 2e-3)
KNOWN = {"epochs": 2, "batch_tokens": 1024, "lr": 2e-3, "max_length": 64}
SECTION = {"epochs": 30, "batch_tokens": 256, "max_length": 64, "validation_tokens": 10_000}
LAYERS = 4
SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": LAYERS, "tie_word_embeddings": False}
ENDS = {"input": {0, 1}, "labels": {LAYERS, LAYERS + 1}}
"""Depths (0: embeddings, then the blocks, then the head) at the end of the model where each shift sits."""
ARMS: dict[str, list[dict[str, Any]]] = {
    "full": [],
    "first": [{"use": "freeze", "above": 1, "names": ["lm_head*", "model.norm*"]}],
    "last": [{"use": "freeze", "below": LAYERS - 1}],
    "gradient": [{"use": "surgical", "share": 0.15}],
    "trial": [{"use": "surgical", "share": 0.15, "by": "trial"}],
    "random": [{"use": "surgical", "share": 0.15, "by": "random"}],
}


def rows(seed: int, part: str, count: int, shift: str | None) -> list[Row]:
    """Questions with their answers. ``seed`` decides the secret half and what trades places; counts are equally likely."""
    secret, rng = random.Random(f"secret-{seed}"), random.Random(f"{part}-{seed}")
    letters = secret.sample(LETTERS, len(LETTERS))
    half, others = letters[: len(letters) // 2], letters[len(letters) // 2 :]
    digits = list(range(LENGTH + 1))
    while any(place == digit for place, digit in enumerate(digits)):
        secret.shuffle(digits)
    if shift == "input":
        half, others = half[:4] + others[:4], half[4:] + others[4:]
    pairs = []
    for _ in range(count):
        members = rng.randrange(LENGTH + 1)
        question = rng.choices(half, k=members) + rng.choices(others, k=LENGTH - members)
        rng.shuffle(question)
        pairs.append(("".join(question), str(digits[members] if shift == "labels" else members)))
    return chat_rows(pairs)


def start(seed: int, folder: Path) -> Path:
    """A model that knows the task without a shift; its head is not tied to its embeddings."""
    return base(folder.parent / f"base-{seed}", rows(seed, "known", 8_000, None), seed, KNOWN, **SHAPE)


def moved(before: Path, after: Path) -> set[int]:
    """Depths of the matrices that differ between two saved models."""
    old, new = (opened(path, "language") for path in (before, after))
    others = new.parameters_by_name()
    named = {name: p for name, p in old.parameters_by_name().items() if p.ndim >= 2}
    return {old.depth(name) for name, parameter in named.items() if not parameter.equal(others[name])}


def shifted(techniques: list[dict[str, Any]], shift: str, seed: int, folder: Path) -> Metrics:
    """One shift at the best of three learning rates by validation loss; ``found``: only the matching end moved."""
    model = start(seed, folder)
    data = {"validation": {"use": "jsonl", "path": str(folder.parent / f"look-{shift}-{seed}.jsonl")}}
    write_rows(Path(data["validation"]["path"]), rows(seed, "look", 200, shift))
    path = write_rows(folder.parent / f"{shift}-{seed}.jsonl", rows(seed, "train", ROWS, shift))
    test = rows(seed, "test", 500, shift)

    def at(rate: float) -> Metrics:
        changes = {"data": data, "train": {**SECTION, "lr": rate}, "techniques": techniques}
        report, run = train(recipe(model, path, seed), folder, **changes)
        found = 100.0 * (moved(model, run / "model") <= ENDS[shift])
        score = recalled(opened(run / "model", "language"), test)
        return {"accuracy": score, "found": found, "validation_loss": final(report, "validation_loss")}

    return best(RATES, at, "validation_loss")


def arm(techniques: list[dict[str, Any]], seed: int, folder: Path) -> Metrics:
    """Both shifts."""
    measured: Metrics = {}
    for shift in ENDS:
        found = shifted(techniques, shift, seed, folder)
        measured |= {f"{shift}_accuracy": found["accuracy"], f"{shift}_found": found["found"]}
    return measured


EXPERIMENT = Experiment(
    name="layer_shift",
    techniques=("surgical", "freeze"),
    question="After a shift of input or labels: does training the matching end win, and does `surgical` choose there?",
    budget=f"30 epochs of the same {ROWS} rows, the best of three learning rates by validation loss",
    arms={name: partial(arm, techniques) for name, techniques in ARMS.items()},
    claims=(
        Claim("first", "last", "input_accuracy", least=5.0, shown=True),
        Claim("last", "first", "labels_accuracy", least=5.0, shown=True),
        Claim("first", "full", "input_accuracy", least=5.0, shown=True),
        Claim("last", "full", "labels_accuracy", least=5.0, shown=True),
        Claim("trial", "full", "input_found", least=80.0),
        Claim("trial", "full", "labels_found", least=80.0),
        Claim("gradient", "full", "input_found", least=80.0),
        Claim("gradient", "full", "labels_found", least=80.0),
        Claim("trial", "random", "input_accuracy", least=5.0, shown=True),
        Claim("trial", "random", "labels_accuracy", least=5.0, shown=True),
    ),
    seeds=5,
    placebo="random",
)
