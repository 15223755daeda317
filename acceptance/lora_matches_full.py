"""LoRA with below 1 % of the parameters beside full fine-tuning, each at the best of its learning rates on the first seed."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from acceptance.protocol import Claim, Experiment, Metrics
from acceptance.training import REVIEWS, accuracy, final, train, tuned

RATES = {"full": (2.5e-5, 5e-5, 1e-4, 2e-4), "lora": (5e-4, 1e-3, 2e-3), "placebo": (1e-3,)}
TECHNIQUES: dict[str, list[object]] = {
    "full": [],
    "lora": [{"use": "lora", "rank": 4, "alpha": 16.0}],
    "placebo": [{"use": "lora", "rank": 4, "alpha": 16.0}, {"use": "shuffled_labels"}],
}
PARAMETERS = 22_714_000


def arm(kind: str, seed: int, folder: Path) -> Metrics:
    """Two epochs at the rate with the lowest validation loss on the first seed."""

    def at(rate: float, seed: int) -> Metrics:
        changes = {"train": {"lr": rate, "epochs": 2}, "techniques": TECHNIQUES[kind], "seed": seed}
        report, _ = train(REVIEWS, folder, **changes)
        share = 100.0 * (report.cost.trainable_parameters or 0) / PARAMETERS
        found = {"accuracy": accuracy(report), "share_trained": share, "validation_loss": final(report, "validation_loss")}
        return found | {"lr": rate}

    rate = tuned(folder.parent / f"rate-{kind}.json", RATES[kind], lambda each: at(each, 0), "validation_loss")
    return at(rate, seed)


EXPERIMENT = Experiment(
    name="lora_matches_full",
    techniques=("lora",),
    question="Does LoRA with below 1 % of the parameters come within 1 point of full fine-tuning of MiniLM on film reviews?",
    budget="two epochs of the same 6,830 reviews, the learning rate with the lowest validation loss on the first seed",
    arms={kind: partial(arm, kind) for kind in RATES},
    claims=(
        Claim("lora", "full", "accuracy", least=-1.0),
        Claim("lora", "placebo", "accuracy", least=5.0, shown=True),
    ),
    seeds=3,
    placebo="placebo",
)
