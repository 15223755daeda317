"""Half of the feed-forward neurons cut out and healed, beside the same size from scratch, and beside a cut at random.

Besides: half of all weights set to zero by Wanda, by size and at random, without any healing.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch

from acceptance.distillation import ROWS, TEACHER, TEACHER_STEPS, TEST, data, teacher
from acceptance.protocol import Arm, Claim, Experiment, Metrics
from acceptance.training import bits_per_byte, opened, score, train
from uplift.core.recipe import Recipe
from uplift.core.values import Corpus
from uplift.data.dataset import load_parts
from uplift.techniques.compress.sparsify import Sparsify
from uplift.testing.tiny import tiny_causal
from uplift.verbs.evaluate import evaluate

STEPS, RATE = 300, 1e-3
SECTION: dict[str, Any] = {"max_length": 256, "batch_tokens": 2048, "schedule": {"use": "wsd"}}
HALF = TEACHER["intermediate_size"] // 2
SCRATCH_RATES = (1e-3, 3e-3, 1e-2)
"""From scratch the best of three rates is taken on the test rows themselves: in its favour."""


def recipe_of(model: Path, section: dict[str, Any], steps: int, rate: float, seed: int) -> dict[str, Any]:
    """One training of ``model`` on source code."""
    return {
        "model": {"use": "hf", "id": str(model)},
        "data": section,
        "task": {"use": "text"},
        "train": SECTION | {"steps": steps, "lr": rate},
        "evaluate": {"base": False},
        "seed": seed,
    }


def measured(recipe: dict[str, Any], folder: Path, techniques: list[dict[str, Any]]) -> Metrics:
    """Bits per byte on held-out files, size, and seconds of training."""
    report, run = train(recipe, folder, techniques=techniques)
    parameters = sum(parameter.numel() for parameter in opened(run / "model", "language").parameters())
    return {"bits_per_byte": bits_per_byte(report), "parameters": float(parameters), "seconds": report.cost.seconds or 0.0}


def healed(
    by: str,
    distilled: bool,
    seed: int,
    folder: Path,
    *,
    rows: int = ROWS,
    test: int = TEST,
    steps: int = STEPS,
    teacher_steps: int = TEACHER_STEPS,
) -> Metrics:
    """The trained model with half of its neurons, after healing."""
    master = teacher(folder.parent, rows, test, teacher_steps)
    techniques: list[dict[str, Any]] = [{"use": "prune", "feed_forward": HALF, "by": by}]
    if distilled:
        techniques.append({"use": "distill", "teacher": str(master), "weight": 1.0})
    section = data(folder.parent, rows, test, seed, 1.0)
    return measured(recipe_of(master, section, steps, RATE, seed), folder, techniques)


def scratch(seed: int, folder: Path, *, rows: int = ROWS, test: int = TEST, steps: int = STEPS) -> Metrics:
    """The same size from random weights on the same tokens, at the best of three rates."""
    shape = TEACHER | {"intermediate_size": HALF}
    start = tiny_causal(folder.parent / f"scratch-{seed}", seed=seed, initializer_range=0.02, **shape)
    section = data(folder.parent, rows, test, seed, 1.0)
    found = [measured(recipe_of(start, section, steps, rate, seed), folder, []) for rate in SCRATCH_RATES]
    return min(found, key=lambda each: each["bits_per_byte"])


def zeroed(
    method: str,
    seed: int,
    folder: Path,
    *,
    rows: int = ROWS,
    test: int = TEST,
    teacher_steps: int = TEACHER_STEPS,
) -> Metrics:
    """The trained model with half of its weights zero, as it is then; rows to measure on are drawn by the seed."""
    master = teacher(folder.parent, rows, test, teacher_steps)
    section = data(folder.parent, rows, test, seed, 1.0)
    recipe = Recipe.model_validate({"name": "zeroed"} | recipe_of(master, section, 1, RATE, seed))
    model = opened(master, "language")
    if method != "dense":
        technique = Sparsify.model_validate({"use": "sparsify", "method": method, "share": 0.5})
        technique.samples(Corpus(load_parts(recipe.data, recipe.task, Path(), "language").train, "train"))
        torch.manual_seed(seed)
        model = technique.edit(model)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model.save(folder / "model")
    return {"bits_per_byte": score(evaluate(str(folder / "model"), recipe, Path()), "bits_per_byte")}


BPB = "bits_per_byte"
ARMS: dict[str, Arm] = {
    "scratch": scratch,
    "activations": partial(healed, "activations", False),
    "activations_distilled": partial(healed, "activations", True),
    "weights": partial(healed, "weights", False),
    "random": partial(healed, "random", False),
    "dense": partial(zeroed, "dense"),
    "wanda": partial(zeroed, "wanda"),
    "magnitude": partial(zeroed, "magnitude"),
    "random_zeros": partial(zeroed, "random"),
}
EXPERIMENT = Experiment(
    name="prune_heal",
    techniques=("prune", "sparsify"),
    question="Is a 1M model with half of its neurons cut and healed better than the same size anew, and than a random cut?",
    budget=f"{STEPS} equal steps after the cut; from scratch the best of three rates; zeros are made without any training",
    arms=ARMS,
    claims=(
        Claim("activations", "scratch", BPB, most=-0.1, shown=True),
        Claim("activations_distilled", "scratch", BPB, most=-0.1, shown=True),
        Claim("activations", "random", BPB, most=-0.005, shown=True),
        Claim("wanda", "magnitude", BPB, most=0.0, shown=True),
        Claim("wanda", "random_zeros", BPB, most=-0.5, shown=True),
    ),
    seeds=3,
    placebo="random",
)
