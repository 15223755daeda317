"""LoRA with below 1 % of the parameters beside full fine-tuning, each at the best of three learning rates."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from acceptance.protocol import Claim, Experiment, Metrics
from acceptance.training import REVIEWS, accuracy, best, final, train

RATES = {"full": (5e-5, 1e-4, 2e-4), "lora": (5e-4, 1e-3, 2e-3), "placebo": (1e-3,)}
TECHNIQUES: dict[str, list[object]] = {
    "full": [],
    "lora": [{"use": "lora", "rank": 4, "alpha": 16.0}],
    "placebo": [{"use": "lora", "rank": 4, "alpha": 16.0}, {"use": "shuffled_labels"}],
}
PARAMETERS = 22_714_000


def arm(kind: str, seed: int, folder: Path) -> Metrics:
    """Two epochs at each rate; the one with the lowest validation loss counts."""

    def at(rate: float) -> Metrics:
        changes = {"train": {"lr": rate, "epochs": 2}, "techniques": TECHNIQUES[kind], "seed": seed}
        report, _ = train(REVIEWS, folder, **changes)
        share = 100.0 * (report.cost.trainable_parameters or 0) / PARAMETERS
        return {"accuracy": accuracy(report), "share_trained": share, "validation_loss": final(report, "validation_loss")}

    return best(RATES[kind], at, "validation_loss")


EXPERIMENT = Experiment(
    name="lora_matches_full",
    techniques=("lora",),
    question="Does LoRA with below 1 % of the parameters come within 1 point of full fine-tuning of MiniLM on film reviews?",
    budget="two epochs of the same 6,830 reviews, the best of three learning rates by validation loss",
    arms={kind: partial(arm, kind) for kind in RATES},
    claims=(
        Claim("lora", "full", "accuracy", least=-1.0),
        Claim("lora", "placebo", "accuracy", least=5.0, shown=True),
    ),
    seeds=3,
    placebo="placebo",
)
