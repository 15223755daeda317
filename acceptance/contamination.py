"""Test rows that leaked into training: how much better a model looks for it, and what `decontaminate` makes of that."""

from __future__ import annotations

import random
import re
from functools import partial
from pathlib import Path
from typing import Any

from acceptance.protocol import Claim, Experiment, Metrics
from acceptance.training import accuracy, few_reviews, train
from uplift.core.prepare_section import Decontaminate
from uplift.core.source_section import FileSource
from uplift.data.clean.decontaminate import Decontaminator
from uplift.data.sources import read_source
from uplift.testing.tiny import Row, write_rows

TRAINING, TEST, LEAKED = 600, 300, 150
"""Rows; so many of the test rows are also trained on, with their labels."""
NOISED, NOISE = 0.5, 0.1
"""Share of the leaked rows that are reworded, and the share of their words that are replaced."""
MINILM: dict[str, Any] = {"use": "package", "name": "minilm-l6"}
SECTION = {"max_length": 128, "batch_tokens": 1024, "lr": 2e-4, "schedule": {"use": "wsd"}}
STEPS = 120
"""About six times through the rows: a pretrained encoder then knows most of them by heart."""


def rows_of(path: str) -> list[Row]:
    """The rows of a JSON lines file."""
    return [dict(row.values) for row in read_source(FileSource(path=path), Path()).rows]


def leak(test: list[Row], count: int, rng: random.Random) -> list[Row]:
    """So many test rows as they get into training sets: some as they are, some with words replaced."""
    words = " ".join(str(row["text"]) for row in test).split()

    def reworded(text: str) -> str:
        return re.sub(r"\S+", lambda match: rng.choice(words) if rng.random() < NOISE else match[0], text)

    chosen = rng.sample(test, count)
    return [row | {"text": reworded(row["text"])} if rng.random() < NOISED else row for row in chosen]


def decontaminated(rows: list[Row], test: Path) -> list[Row]:
    """What `decontaminate` leaves."""
    section = Decontaminate.model_validate({"against": [str(test)], "columns": ["text"]})
    step = Decontaminator(section, Path())
    texts = [str(row["text"]) for row in rows]
    step.settle([step.sketch(texts)])
    return [row for number, row in enumerate(rows) if step.judge(number, texts[number]).text is not None]


def arm(
    kind: str,
    seed: int,
    folder: Path,
    *,
    training: int = TRAINING,
    test: int = TEST,
    leaked: int = LEAKED,
    steps: int = STEPS,
) -> Metrics:
    """Test accuracy in per cent, and the rows trained on."""
    shared = folder.parent
    found = few_reviews(shared, training, seed)
    held = rows_of(found["test"]["path"])[:test]
    write_rows(shared / f"held-{test}.jsonl", held)
    own = rows_of(found["train"]["path"])
    rng = random.Random(seed)
    added = leak(held, leaked, rng)
    whole = rng.sample([*own, *added], len(own) + len(added))
    clean = decontaminated(whole, shared / f"held-{test}.jsonl")
    rows = {
        "clean": [row for row in whole if row in own],
        "leaked": whole,
        "decontaminated": clean,
        "placebo": [whole[index] for index in sorted(rng.sample(range(len(whole)), len(clean)))],
    }[kind]
    path = shared / f"rows-{kind}-{training}-{seed}.jsonl"
    write_rows(path, rows)
    recipe = {
        "model": MINILM,
        "data": {
            "split": {"validation": 0.0, "test": 0.0},
            "train": {"use": "jsonl", "path": str(path)},
            "test": {"use": "jsonl", "path": str(shared / f"held-{test}.jsonl")},
        },
        "task": {"use": "classify", "text": "text", "label": "label", "head": "classifier"},
        "train": SECTION | {"steps": steps},
        "evaluate": {"base": False},
    }
    report, _ = train(recipe, folder, techniques=[], seed=seed)
    return {"accuracy": accuracy(report), "rows": float(len(rows))}


EXPERIMENT = Experiment(
    name="contamination",
    techniques=(),
    question="How much does a test score rise when half of the test rows are trained on, and does `decontaminate` undo it?",
    budget=f"{STEPS} equal steps; {TRAINING} reviews, when leaked also {LEAKED} of {TEST} test rows, half of them reworded",
    arms={kind: partial(arm, kind) for kind in ("clean", "leaked", "decontaminated", "placebo")},
    claims=(
        Claim("leaked", "clean", "accuracy", least=10.0, shown=True),
        Claim("decontaminated", "clean", "accuracy", least=-2.0, most=2.0),
        Claim("decontaminated", "placebo", "accuracy", most=-5.0, shown=True),
    ),
    seeds=5,
    placebo="placebo",
)
