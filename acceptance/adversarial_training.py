"""Training on attacked embeddings beside random noise of the same size: accuracy under attack, and what it costs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from acceptance.protocol import Claim, Experiment, Metrics
from acceptance.training import REVIEWS, accuracy, few_reviews, train

ROWS, EPS = 500, 0.03
"""Larger attacks from the first step on keep the new head from learning anything: FGM at 0.05 ends at one class."""
SECTION = {"epochs": 8, "batch_tokens": 1024, "lr": 1e-4}
ARMS: dict[str, list[dict[str, Any]]] = {
    "plain": [],
    "noise": [{"use": "random_noise", "eps": EPS}],
    "fgm": [{"use": "fgm", "eps": EPS}],
    "freelb": [{"use": "freelb", "eps": EPS}],
}
ATTACKS = {"attacks": ["embedding", "typo"], "rows": 200, "queries": 30, "eps": [EPS / 2, EPS], "steps": 10}


def arm(techniques: list[dict[str, Any]], seed: int, folder: Path) -> Metrics:
    """The same epochs on the same reviews; accuracy in per cent, clean and under attack."""
    recipe = REVIEWS | {"data": few_reviews(folder.parent, ROWS, seed), "evaluate": {"base": False, "robustness": ATTACKS}}
    report, _ = train(recipe, folder, train=SECTION, techniques=techniques, seed=seed)
    assert report.evaluation is not None and report.evaluation.robustness is not None
    found = {"clean": accuracy(report), "seconds": report.cost.seconds or 0.0}
    for attack in report.evaluation.robustness.attacks:
        name = attack.attack if attack.eps is None else f"{attack.attack}_{attack.eps:g}"
        found[name] = 100.0 * (attack.result.robust.value or 0.0)
    return found


PGD = f"pgd_{EPS:g}"
EXPERIMENT = Experiment(
    name="adversarial_training",
    techniques=("fgm", "freelb", "random_noise"),
    question=f"Do FGM and FreeLB make MiniLM right more often under PGD ({EPS:g} of the embeddings' norm) than noise does?",
    budget=f"8 epochs of the same {ROWS} reviews; attacks cost 2 to 4 times the time of the plain arm",
    arms={name: partial(arm, techniques) for name, techniques in ARMS.items()},
    claims=(
        Claim("fgm", "noise", PGD, least=10.0, shown=True),
        Claim("freelb", "noise", PGD, least=10.0, shown=True),
        Claim("noise", "plain", PGD, most=3.0),
        Claim("fgm", "plain", "clean", least=-1.0),
        Claim("fgm", "noise", "typo", least=0.0, shown=True),
    ),
    seeds=4,
    placebo="noise",
)
