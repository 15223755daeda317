"""A corpus of which half are copies, against what `dedup` leaves of it: held-out bits per byte, and what is known by heart."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import torch

from acceptance.distillation import pieces
from acceptance.protocol import Claim, Experiment, Metrics
from acceptance.training import bits_per_byte, opened, train
from uplift.core.prepare_section import Dedup
from uplift.core.values import Origin, Progress, Sample
from uplift.data.chat import Encoder
from uplift.data.clean.dedup import Deduplicator
from uplift.data.packing import pack, split_micro
from uplift.testing.tiny import tiny_causal, write_rows

UNIQUE, COPIED, COPIES = 1_000, 12, 84
"""Rows that are there once; rows that are there ``COPIES`` times: half of the corpus."""
TEST = 300
CHANGED = 0.5
"""Share of the copies in which one word is another: near duplicates."""
MODEL: dict[str, Any] = {"hidden_size": 96, "intermediate_size": 288, "num_hidden_layers": 4}
"""About 0.5M parameters."""
SECTION = {"max_length": 256, "batch_tokens": 2048, "lr": 3e-3, "schedule": {"use": "wsd"}}
STEPS = 500
GIVEN, CONTINUED = 64, 32
"""Tokens of a copied row that the model is given, and those it must continue with, all right, to know the row by heart."""


def corpus(seed: int, unique: int, copied: int, copies: int, test: int) -> tuple[list[str], list[str], list[str]]:
    """Training rows in an order drawn by ``seed``; the copied rows among them; test rows of other files."""
    rng = random.Random(seed)
    whole, held = pieces(4 * unique, test)
    chosen = rng.sample(whole, unique + copied)
    planted = chosen[unique:]
    words = " ".join(chosen[:50]).split()
    rows = chosen[:unique] + planted
    for text in planted:
        rows += [_changed(text, words, rng) if rng.random() < CHANGED else text for _ in range(copies - 1)]
    return rng.sample(rows, len(rows)), planted, held


def _changed(text: str, words: list[str], rng: random.Random) -> str:
    """The text with one word replaced, beyond the part that is asked for."""
    pieces = text.rsplit(" ", 3)
    pieces[1 if len(pieces) > 1 else 0] = rng.choice(words)
    return " ".join(pieces)


def deduplicated(rows: list[str]) -> list[str]:
    """What `dedup` leaves."""
    step = Deduplicator(Dedup())
    step.settle([step.sketch(rows)])
    return [row for number, row in enumerate(rows) if step.judge(number, row).text is not None]


@torch.no_grad()
def known_by_heart(folder: Path, texts: list[str]) -> float:
    """Per cent of the texts that the model continues word for word by its likeliest tokens."""
    model = opened(folder, "language")
    encoder = Encoder(model.tokenizer, 256, "causal")
    encoded = [encoder.encode(Sample(str(i), Origin("planted", i), text=text)) for i, text in enumerate(texts)]
    right = 0
    for part in split_micro(encoded, 4096):
        batch = pack(part, device="cpu", progress=Progress(), seed=0)
        hidden = model.hidden(model.embed(batch.ids), batch.positions, batch.lengths)
        hit_T = model.logits(hidden[0]).argmax(-1) == batch.targets[0]
        # Greedy decoding gives these tokens exactly when each is the likeliest after the true ones before it.
        right += sum(bool(own[GIVEN - 1 : GIVEN - 1 + CONTINUED].all()) for own in torch.split(hit_T, list(batch.lengths)))
    return 100.0 * right / len(texts)


def arm(
    kind: str,
    seed: int,
    folder: Path,
    *,
    unique: int = UNIQUE,
    copied: int = COPIED,
    copies: int = COPIES,
    test: int = TEST,
    steps: int = STEPS,
) -> Metrics:
    """Bits per byte on held-out files, the copied rows known by heart in per cent, and the rows trained on."""
    rows, planted, held = corpus(seed, unique, copied, copies, test)
    clean = deduplicated(rows)
    if kind == "placebo":
        chosen = sorted(random.Random(seed).sample(range(len(rows)), len(clean)))
        rows = [rows[index] for index in chosen]
    elif kind == "deduplicated":
        rows = clean
    section: dict[str, Any] = {"split": {"validation": 0.0, "test": 0.0}}
    for part, texts in (("train", rows), ("test", held)):
        path = folder.parent / f"{part}-{kind}-{seed}.jsonl"
        write_rows(path, [{"text": text} for text in texts])
        section[part] = {"use": "jsonl", "path": str(path)}
    start = tiny_causal(folder.parent / f"start-{seed}", seed=seed, initializer_range=0.02, **MODEL)
    recipe = {
        "model": {"use": "hf", "id": str(start)},
        "data": section,
        "task": {"use": "text"},
        "train": SECTION | {"steps": steps},
        "evaluate": {"base": False},
    }
    report, run = train(recipe, folder, techniques=[], seed=seed)
    heart = known_by_heart(run / "model", planted)
    return {"bits_per_byte": bits_per_byte(report), "known_by_heart": heart, "rows": float(len(rows))}


BPB, HEART = "bits_per_byte", "known_by_heart"
EXPERIMENT = Experiment(
    name="dedup_effect",
    techniques=(),
    question="What does a 0.5M decoder gain when the copies go from a corpus of which half are copies?",
    budget=f"{STEPS} equal steps of {SECTION['batch_tokens']} tokens; half of the corpus is {COPIED} rows, {COPIES} times each",
    arms={kind: partial(arm, kind) for kind in ("duplicated", "deduplicated", "placebo")},
    claims=(
        Claim("deduplicated", "duplicated", BPB, most=-0.05, shown=True),
        Claim("deduplicated", "duplicated", HEART, most=-20.0, shown=True),
        Claim("deduplicated", "placebo", BPB, most=-0.05, shown=True),
        Claim("deduplicated", "placebo", HEART, most=-20.0, shown=True),
    ),
    seeds=5,
    placebo="placebo",
)
