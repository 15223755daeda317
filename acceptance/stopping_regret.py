"""Early stopping in a run that over-fits: what each rule loses against the best step, and how much of the run it uses."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from acceptance.protocol import Claim, Experiment, Metrics
from acceptance.training import REVIEWS, few_reviews, train
from uplift.core.run import Run
from uplift.core.values import Progress
from uplift.techniques.stop.early_stopping import EarlyStopping

ROWS = 200
SECTION = {
    "epochs": 40,
    "batch_tokens": 512,
    "lr": 1e-4,
    "evaluate_every": 5,
    "validation_tokens": 4_000,
    "schedule": {"use": "constant"},
}
RULES: dict[str, dict[str, object]] = {
    "patience_1": {"patience": 1},
    "noise_aware": {"patience": 5, "noise": 0.5},
    "gl": {"criterion": "gl", "threshold": 5.0},
    "up": {"criterion": "up", "patience": 3},
}


def looks(seed: int, folder: Path) -> list[dict[str, float]]:
    """All metrics of the over-fitting run, step by step; every rule is replayed on the same one."""
    home = folder.parent / f"run-{seed}"
    if not any(home.glob("*/report.json")):
        train(REVIEWS | {"data": few_reviews(folder.parent, ROWS, seed)}, home, train=SECTION, seed=seed)
    run = Run.open(next(home.glob("*/report.json")).parent)
    steps: dict[int, dict[str, float]] = {}
    for step, name, value in run.metrics():
        steps.setdefault(step, {})[name] = value
    return [{"step": float(step), **found} for step, found in sorted(steps.items())]


def arm(rule: dict[str, object] | None, seed: int, folder: Path) -> Metrics:
    """Regret (validation loss of the weights kept minus the lowest of the run), and per cent of the run's steps used."""
    metrics = looks(seed, folder)
    losses = [found["validation_loss"] for found in metrics if "validation_loss" in found]
    if rule is None:
        return {"regret": losses[-1] - min(losses), "used": 100.0, "early": 0.0}
    technique = EarlyStopping.model_validate(rule)
    for found in metrics:
        if any(signal.kind == "stop" for signal in technique.observe(Progress(step=int(found["step"])), found)):
            break
    used, lowest = 100.0 * found["step"] / metrics[-1]["step"], losses.index(min(losses))
    early = float(technique._stopped >= 0 and technique._stopped < lowest)
    return {"regret": losses[technique._best] - min(losses), "used": used, "early": early}


EXPERIMENT = Experiment(
    name="stopping_regret",
    techniques=("early_stopping",),
    question="Does a noise-aware rule keep nearly the best weights of an over-fitting run and save half of it?",
    budget=f"40 epochs over {ROWS} reviews; every rule is replayed on the same run of a seed",
    arms={
        "never": partial(arm, None),
        **{name: partial(arm, rule) for name, rule in RULES.items()},
    },
    claims=(
        Claim("noise_aware", "never", "regret", most=-0.05, shown=True),
        Claim("noise_aware", "never", "used", most=-50.0, shown=True),
    ),
    seeds=6,
)
