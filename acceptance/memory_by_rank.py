"""How many random key -> value pairs an adapter of each rank can memorise: real capacity grows with rank."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

from acceptance.protocol import Claim, Experiment, Metrics
from acceptance.small import base, chat_rows, recalled, recipe
from acceptance.training import best, opened, train
from uplift.testing.tiny import Row, write_rows

PAIRS = 1024
RANKS = {"rank_1": 1, "rank_4": 4, "rank_16": 16}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
KNOWN = {"epochs": 12, "batch_tokens": 2048, "lr": 3e-3, "max_length": 64}


def pairs(seed: int, count: int) -> list[Row]:
    """Chat rows with a random key as question and a random value as answer."""
    rng = random.Random(seed)
    keys = set[str]()
    while len(keys) < count:
        keys.add("".join(rng.choices(LETTERS, k=5)))
    return chat_rows((key, "".join(rng.choices(LETTERS, k=4))) for key in sorted(keys))


def start(seed: int, folder: Path) -> Path:
    """A model that knows the format and other pairs."""
    return base(folder.parent / f"base-{seed}", pairs(1000 + seed, 2 * PAIRS), seed, KNOWN)


def arm(rank: int | None, rates: tuple[float, ...], seed: int, folder: Path) -> Metrics:
    """The same epochs on the same pairs at each rate; the one that recalls most counts."""
    model, rows = start(seed, folder), pairs(seed, PAIRS)
    path = write_rows(folder.parent / f"pairs-{seed}.jsonl", rows)
    techniques = [] if rank is None else [{"use": "lora", "rank": rank, "alpha": float(2 * rank)}]

    def at(rate: float) -> Metrics:
        section = {"epochs": 30, "batch_tokens": 1024, "lr": rate, "max_length": 64}
        _, run = train(recipe(model, path, seed, train=section, techniques=techniques), folder)
        return {"recalled": recalled(opened(run / "model", "language"), rows)}

    return best(rates, at, "recalled", highest=True)


def placebo(seed: int, folder: Path) -> Metrics:
    """The model as it is before: it never saw these pairs."""
    return {"recalled": recalled(opened(start(seed, folder), "language"), pairs(seed, PAIRS)), "lr": 0.0}


EXPERIMENT = Experiment(
    name="memory_by_rank",
    techniques=("lora",),
    question="Does what an adapter can memorise grow with its rank, up to what full fine-tuning can?",
    budget=f"30 epochs over the same {PAIRS} random pairs, the better of two learning rates",
    arms={
        "untrained": placebo,
        **{name: partial(arm, rank, (3e-3, 1e-2)) for name, rank in RANKS.items()},
        "full": partial(arm, None, (1e-3, 3e-3)),
    },
    claims=(
        Claim("rank_4", "rank_1", "recalled", least=5.0, shown=True),
        Claim("rank_16", "rank_4", "recalled", least=5.0, shown=True),
        Claim("full", "rank_1", "recalled", least=20.0, shown=True),
        Claim("untrained", "rank_1", "recalled", most=0.0),
    ),
    seeds=3,
    placebo="untrained",
)
