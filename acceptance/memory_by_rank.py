"""How many random key -> value pairs an adapter of each rank can memorise: real capacity grows with rank."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import torch

from acceptance.protocol import Claim, Experiment, Metrics
from acceptance.training import opened, train
from uplift.core.values import Message, Origin, Progress, Sample
from uplift.data.chat import Encoder
from uplift.data.packing import pack, split_micro
from uplift.model.language_model import LanguageModel
from uplift.testing.tiny import Row, tiny_causal, write_rows

PAIRS = 384
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
RANKS = {"rank_1": 1, "rank_4": 4, "rank_16": 16, "rank_64": 64}
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def pairs(seed: int, count: int) -> list[Row]:
    """Chat rows with a random key as question and a random value as answer."""
    rng = random.Random(seed)
    keys = set[str]()
    while len(keys) < count:
        keys.add("".join(rng.choices(LETTERS, k=5)))
    values = ["".join(rng.choices(LETTERS, k=4)) for _ in keys]
    turns = [
        [{"role": "user", "content": k}, {"role": "assistant", "content": v}] for k, v in zip(sorted(keys), values, strict=True)
    ]
    return [{"messages": turn} for turn in turns]


def recipe(model: Path, rows: Path, seed: int, **changes: Any) -> dict[str, Any]:
    """Learn all rows; nothing is held out."""
    return {
        "model": {"use": "hf", "id": str(model)},
        "data": {"train": {"use": "jsonl", "path": str(rows)}, "split": {"validation": 0.0, "test": 0.0}},
        "task": {"use": "chat"},
        "evaluate": {"base": False},
        "hardware": {"device": "cpu", "threads": 1},
        "seed": seed,
        **changes,
    }


def base(seed: int, folder: Path) -> Path:
    """A model that knows the format and other pairs."""
    home = folder.parent / f"base-{seed}"
    if not (home / "model" / "config.json").exists():
        shutil.rmtree(home, ignore_errors=True)
        blank = tiny_causal(home / "blank", seed=seed, **SHAPE)
        rows = write_rows(home / "pairs.jsonl", pairs(1000 + seed, 2 * PAIRS))
        trained = {"epochs": 20, "batch_tokens": 1024, "lr": 2e-3, "max_length": 64}
        _, run = train(recipe(blank, rows, seed, train=trained), home / "runs")
        shutil.copytree(run / "model", home / "model")
    return home / "model"


@torch.no_grad()
def recalled(model: LanguageModel, rows: list[Row]) -> float:
    """Per cent of the pairs whose every answer token is the likeliest one."""
    encoder = Encoder(model.tokenizer, 64, model.kind)
    samples = [
        Sample(str(i), Origin("made", i), tuple(Message(**turn) for turn in row["messages"])) for i, row in enumerate(rows)
    ]
    samples = [
        sample.with_messages([*sample.messages[:-1], Message("assistant", sample.messages[-1].content, learn=True)])
        for sample in samples
    ]
    right = 0
    for part in split_micro([encoder.encode(sample) for sample in samples], 4096):
        batch = pack(part, device=model.device, progress=Progress(), seed=0)
        hidden = model.hidden(model.embed(batch.ids), batch.positions, batch.lengths)
        wrong_T = (model.logits(hidden[0]).argmax(-1) != batch.targets[0]) & (batch.weights[0] > 0)
        right += sum(not bool(piece.any()) for piece in torch.split(wrong_T, list(batch.lengths)))
    return 100.0 * right / len(rows)


def arm(rank: int | None, seed: int, folder: Path, rates: tuple[float, ...]) -> Metrics:
    """The same epochs on the same pairs at each rate; the one that recalls most counts."""
    start, rows = base(seed, folder), pairs(seed, PAIRS)
    path = write_rows(folder.parent / f"pairs-{seed}.jsonl", rows)
    techniques = [] if rank is None else [{"use": "lora", "rank": rank, "alpha": float(2 * rank)}]
    best: Metrics = {"recalled": -1.0}
    for rate in rates:
        section = {"epochs": 60, "batch_tokens": 1024, "lr": rate, "max_length": 64}
        _, run = train(recipe(start, path, seed, train=section, techniques=techniques), folder)
        share = recalled(opened(run / "model", "language"), rows)
        best = max(best, {"recalled": share, "lr": rate}, key=lambda found: found["recalled"])
    return best


def placebo(seed: int, folder: Path) -> Metrics:
    """The base model as it is: it never saw these pairs."""
    return {"recalled": recalled(opened(base(seed, folder), "language"), pairs(seed, PAIRS)), "lr": 0.0}


EXPERIMENT = Experiment(
    name="memory_by_rank",
    techniques=("lora",),
    question="Does what an adapter can memorise grow with its rank, up to what full fine-tuning can?",
    budget=f"60 epochs over the same {PAIRS} random pairs, the best of three learning rates",
    arms={
        "untrained": placebo,
        **{name: (lambda seed, folder, rank=rank: arm(rank, seed, folder, (2e-3, 5e-3, 1e-2))) for name, rank in RANKS.items()},
        "full": lambda seed, folder: arm(None, seed, folder, (1e-3, 2e-3, 4e-3)),
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
