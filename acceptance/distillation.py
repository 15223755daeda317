"""A small student of a well-trained teacher on source code: bits per byte against cross-entropy alone and two placebos."""

from __future__ import annotations

import math
import random
from functools import partial
from pathlib import Path
from typing import Any

import torch

from acceptance.protocol import Claim, Experiment, Metrics
from acceptance.training import bits_per_byte, cut_up, modules, opened, train
from uplift.core.values import Origin, Progress, Sample
from uplift.data.chat import Encoder
from uplift.data.packing import pack, split_micro
from uplift.learn.forward import ForwardPass
from uplift.testing.tiny import tiny_causal, write_rows

PIECE = 320
"""Bytes of source in a row."""
ROWS, TEST = 9_000, 500
FEW = 0.1
TEACHER: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4}
STUDENT: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3}
SECTION = {"max_length": 256, "batch_tokens": 2048, "lr": 3e-3, "schedule": {"use": "wsd"}}
TEACHER_STEPS, STEPS = 2_500, 600


def pieces(rows: int, test: int) -> tuple[list[str], list[str]]:
    """Rows of the standard library's source for training and testing, of different files."""
    texts = modules()
    cut = len(texts) // 6
    parts = []
    for some, count in ((texts[cut:], rows), (texts[:cut], test)):
        found = cut_up(some, PIECE)
        random.Random(1).shuffle(found)
        parts.append([text for text in found if text.strip()][:count])
    return parts[0], parts[1]


def data(folder: Path, rows: int, test: int, seed: int, share: float) -> dict[str, Any]:
    """A `data` section: a share of the training rows, drawn by ``seed``, and always the same test rows."""
    whole, held = pieces(rows, test)
    chosen = random.Random(seed).sample(whole, max(1, round(share * len(whole))))
    section: dict[str, Any] = {"split": {"validation": 0.0, "test": 0.0}}
    for part, texts in (("train", chosen), ("test", held)):
        path = folder / f"{part}-{rows}-{test}-{seed}-{share}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_rows(path, [{"text": text} for text in texts])
        section[part] = {"use": "jsonl", "path": str(path)}
    return section


def teacher(folder: Path, rows: int, test: int, steps: int) -> Path:
    """The teacher, trained once on all training rows, for all experiments that have one."""
    home = folder.parent / "teacher" / f"{rows}-{steps}"
    if not (home / "done").is_dir():
        start = tiny_causal(home / "start", seed=0, initializer_range=0.02, **TEACHER)
        recipe = _recipe(start, data(folder, rows, test, 0, 1.0), steps)
        _, run = train(recipe, home / "runs", techniques=[], seed=0)
        (run / "model").rename(home / "done")
    return home / "done"


def _recipe(model: Path, section: dict[str, Any], steps: int) -> dict[str, Any]:
    return {
        "model": {"use": "hf", "id": str(model)},
        "data": section,
        "task": {"use": "text"},
        "train": SECTION | {"steps": steps},
        "evaluate": {"base": False},
    }


@torch.no_grad()
def entropy(model: Path, texts: list[str]) -> float:
    """Mean entropy in nats of a model's predictions of these texts."""
    found = opened(model, "language")
    encoder = Encoder(found.tokenizer, 256, "causal")
    encoded = [encoder.encode(Sample(str(i), Origin("piece", i), text=text)) for i, text in enumerate(texts)]
    total = count = 0.0
    for part in split_micro(encoded, 2048):
        batch = pack(part, device="cpu", progress=Progress(), seed=0)
        forward = ForwardPass(found, batch, found.embed(batch.ids))
        total, count = total + float(forward.entropy()), count + forward.count
    return total / count


def amount_of(nats: float, words: int) -> float:
    """The label smoothing whose targets have this entropy, by bisection."""
    low, high = 0.0, 1.0 - 1.0 / words
    for _ in range(60):
        amount = (low + high) / 2
        first, others = 1.0 - amount + amount / words, amount / words
        found = -first * math.log(first) - (words - 1) * others * math.log(others)
        low, high = (amount, high) if found < nats else (low, amount)
    return (low + high) / 2


def arm(
    kind: str,
    share: float,
    seed: int,
    folder: Path,
    *,
    rows: int = ROWS,
    test: int = TEST,
    steps: int = STEPS,
    teacher_steps: int = TEACHER_STEPS,
) -> Metrics:
    """Bits per byte of the student on held-out files, and seconds of its training."""
    shared = folder.parent
    master = teacher(shared, rows, test, teacher_steps)
    known: dict[str, Any] = {"use": "distill", "teacher": str(master)}
    techniques: list[dict[str, Any]] = {
        "ce": [],
        "ce_long": [],
        "kd": [known | {"weight": 1.0}],
        "kd_ce": [known | {"weight": 0.5}],
        "shuffled": [known | {"weight": 0.5, "shuffle": True}],
        "smoothed": [{"use": "label_smoothing", "amount": _equal_entropy(master, rows, test)}] if kind == "smoothed" else [],
    }[kind]
    start = tiny_causal(shared / f"student-{seed}", seed=seed, initializer_range=0.02, **STUDENT)
    if kind == "ce_long":  # forward and backward of the student cost 6 per token and weight, forward of the teacher 2
        steps = round(steps * (1 + 2 * _parameters(master) / (6 * _parameters(start))))
    recipe = _recipe(start, data(shared, rows, test, seed, share), steps)
    report, _ = train(recipe, folder, techniques=techniques, seed=seed)
    return {"bits_per_byte": bits_per_byte(report), "seconds": report.cost.seconds or 0.0}


def _parameters(model: Path) -> int:
    return sum(parameter.numel() for parameter in opened(model, "language").parameters())


def _equal_entropy(master: Path, rows: int, test: int) -> float:
    """The smoothing of half the loss's strength: the teacher has half of it in `kd_ce`."""
    texts, _ = pieces(rows, test)
    return 0.5 * amount_of(entropy(master, texts[:200]), int(opened(master, "language").head_weight.shape[0]))


KINDS = ("ce", "ce_long", "kd", "kd_ce", "shuffled", "smoothed")
BPB = "bits_per_byte"
EXPERIMENT = Experiment(
    name="distillation",
    techniques=("distill",),
    question="Does a 0.2M student learn more from a 1M teacher's predictions than from the text alone, and from few rows?",
    budget=f"{STEPS} steps over the same rows (few: {FEW:.0%} of them); ce_long: as much arithmetic as kd with its teacher",
    arms={
        **{kind: partial(arm, kind, 1.0) for kind in KINDS},
        **{f"{kind}_few": partial(arm, kind, FEW) for kind in KINDS},
    },
    claims=(
        Claim("kd_ce", "ce", BPB, most=-0.02, shown=True),
        Claim("kd", "ce", BPB, most=-0.02, shown=True),
        Claim("kd", "ce_long", BPB, most=0.0, shown=True),
        Claim("kd_few", "ce_long_few", BPB, most=0.0, shown=True),
        Claim("shuffled", "ce", BPB, least=0.05, shown=True),
        Claim("kd_ce", "smoothed", BPB, most=-0.02, shown=True),
        Claim("kd_ce_few", "ce_few", BPB, most=-0.1, shown=True),
        Claim("kd_ce_few", "smoothed_few", BPB, most=-0.02, shown=True),
    ),
    seeds=3,
    placebo="shuffled",
)
