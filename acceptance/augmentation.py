"""Augmentation on few real reviews: accuracy and calibration against no copies, equal copies and copies that mean nothing."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from acceptance.protocol import Claim, Experiment, Metrics
from acceptance.training import few_reviews, score, train

SIZES, COPIES = (50, 200, 1000), 4
STEPS = {"blank": {50: 120, 200: 250, 1000: 500}, "minilm": {50: 30, 200: 60, 1000: 120}}
"""By model and rows. Every arm trains as many, so those with copies see each text less often."""
BLANK: dict[str, Any] = {
    "use": "blank",
    "parameters": "1M",
    "context": 128,
    "tokenizer": {"use": "train", "kind": "bpe", "vocabulary": 2048},
}
MINILM = {"use": "package", "name": "minilm-l6"}
MODELS: dict[str, tuple[dict[str, Any], float]] = {
    "blank": (BLANK, 2e-3),
    "minilm": (MINILM, 1e-4),
}
WORDS = {"use": "augment_words", "copies": COPIES}
KINDS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "duplicate": [WORDS | {"operations": ["copy"]}],
    "words": [WORDS | {"operations": ["swap", "delete", "punctuation"], "alpha": 0.1}],
    "random_words": [WORDS | {"operations": ["random"], "alpha": 0.6}],
    "mixup": [{"use": "mixup", "alpha": 0.4}],
}


def arm(model: str, kind: str, rows: int, seed: int, folder: Path, *, steps: int | None = None) -> Metrics:
    """Accuracy and expected calibration error on the test rows."""
    section, lr = MODELS[model]
    steps = steps or STEPS[model][rows]
    rows_of = few_reviews(folder.parent / "rows", rows, seed)
    del rows_of["validation"]  # nothing is chosen by it
    recipe = {
        "model": section,
        "data": rows_of,
        "task": {"use": "classify", "head": "classifier", "labels": {"0": "negative", "1": "positive"}},
        "train": {"steps": steps, "batch_tokens": 256, "max_length": 96, "lr": lr},
        "evaluate": {"base": False},
    }
    report, _ = train(recipe, folder, techniques=KINDS[kind], seed=seed)
    accuracy = score(report.evaluation, "accuracy")
    assert report.evaluation is not None
    error = report.evaluation.metrics["calibration_error"].value
    assert error is not None
    return {"accuracy": accuracy, "ece": error, "seconds": report.cost.seconds or 0.0}


def name(model: str, kind: str, rows: int) -> str:
    """An arm's name."""
    return f"{model}_{rows}_{kind}"


EXPERIMENT = Experiment(
    name="augmentation",
    techniques=("augment_words", "mixup"),
    question="Do copies in other words, and blends, help a classifier on 50, 200 and 1000 reviews more than plain copies do?",
    budget="equal steps of equal size from the same start; four copies a row, plain ones in the placebo",
    arms={name(model, kind, rows): partial(arm, model, kind, rows) for rows in SIZES for model in MODELS for kind in KINDS},
    claims=(
        Claim(name("blank", "words", 50), name("blank", "duplicate", 50), "accuracy", least=0.02, shown=True),
        *(
            Claim(name("blank", "random_words", rows), name("blank", "words", rows), "accuracy", most=0.0, shown=True)
            for rows in (200, 1000)
        ),
        Claim(name("minilm", "words", 1000), name("minilm", "duplicate", 1000), "accuracy", least=-0.01, most=0.01),
        *(Claim(name(model, "mixup", 1000), name(model, "none", 1000), "ece", most=-0.02, shown=True) for model in MODELS),
    ),
    seeds=5,
    placebo="blank_50_duplicate",
)
