"""Sentences of a known chain of words: does a judge's reward bring a model nearer to the chain than further plain training?"""

from __future__ import annotations

import math
import random
from functools import partial
from pathlib import Path
from typing import Any

from acceptance.protocol import Claim, Experiment, Metrics
from acceptance.small import base, chat_rows, recipe
from acceptance.training import opened, train
from uplift.core.values import Message, Origin, Sample, derive_seed
from uplift.data.chat import Encoder
from uplift.learn.rollout import rollout
from uplift.testing.tiny import Row, write_rows

WORDS, FOLLOWERS, LENGTH = 40, 5, 8
"""Words of the chain, words that may follow each, words of a sentence behind the first one."""
IMPOSSIBLE = 1e-3
"""What a word counts that cannot stand there, or is missing."""
ROWS, ASKED, ROUNDS = 300, 40, 8
KNOWN = {"epochs": 8, "batch_tokens": 2048, "lr": 3e-3, "max_length": 96}
STEPS = 100
FURTHER = {"batch_tokens": 1024, "lr": 3e-4, "max_length": 96}
REWARD = {"use": "discriminator_reward", "share": 0.5, "answers": 4, "max_new_tokens": 48}
TECHNIQUES: dict[str, list[dict[str, Any]]] = {
    "plain": [],
    "judge": [REWARD],
    "shuffled": [REWARD | {"reward": "shuffled"}],
    "constant": [REWARD | {"reward": "constant"}],
}
Chain = dict[str, dict[str, float]]


def chain(seed: int) -> Chain:
    """Word -> chances of the words that may follow."""
    rng = random.Random(seed)
    words = [a + b for a in "bdfgklmn" for b in "aeiou"][:WORDS]
    found = {}
    for word in words:
        sizes = [rng.expovariate(1.0) for _ in range(FOLLOWERS)]
        found[word] = {after: size / sum(sizes) for after, size in zip(rng.sample(words, FOLLOWERS), sizes, strict=True)}
    return found


def sentences(oracle: Chain, seed: int, count: int) -> list[Row]:
    """A first word as the question, what follows as the answer."""
    rng = random.Random(seed)
    pairs = []
    for _ in range(count):
        words = [rng.choice(sorted(oracle))]
        for _ in range(LENGTH):
            after = oracle[words[-1]]
            words += rng.choices(list(after), list(after.values()))
        pairs.append((words[0], " ".join(words[1:])))
    return chat_rows(pairs)


def surprise(oracle: Chain, first: str, text: str) -> float:
    """Nats a word that the chain finds in a sentence; words that are missing or beyond its length count as impossible."""
    words = [first, *text.split()]
    count = max(LENGTH, len(words) - 1)
    found = [oracle.get(a, {}).get(b, IMPOSSIBLE) for a, b in zip(words, words[1 : LENGTH + 1], strict=False)]
    return -sum(math.log(each) for each in [*found, *[IMPOSSIBLE] * (count - len(found))]) / count


def looked_at(folder: Path, oracle: Chain, seed: int, rounds: int) -> Metrics:
    """Surprise of what a model writes at temperatures 1 and 0.7, and in per cent how many of its pairs of words differ."""
    model = opened(folder, "language")
    encoder = Encoder(model.tokenizer, 96, model.kind)
    firsts = [word for word in sorted(oracle)[:ASKED] for _ in range(rounds)]
    prompts = [encoder.encode_prompt(Sample(word, Origin("asked", 1), (Message("user", word),))) for word in firsts]
    seeds = [derive_seed("look", seed, number) for number in range(len(firsts))]
    found: Metrics = {}
    for name, temperature in (("surprise", 1.0), ("surprise_cooled", 0.7)):
        ids = rollout(model, prompts, ends=encoder.end_ids, max_new_tokens=48, seeds=seeds, temperature=temperature)
        texts = [str(model.tokenizer.decode(each, skip_special_tokens=True)) for each in ids]
        each = [surprise(oracle, first, text) for first, text in zip(firsts, texts, strict=True)]
        pairs = [pair for text in texts for pair in zip(text.split(), text.split()[1:], strict=False)]
        found |= {name: sum(each) / len(each), f"distinct{name[8:]}": 100.0 * len(set(pairs)) / max(1, len(pairs))}
    return found


def arm(kind: str, seed: int, folder: Path, *, rows: int = ROWS, steps: int = STEPS, rounds: int = ROUNDS) -> Metrics:
    """Further training of one model in each of the ways."""
    oracle = chain(seed)
    written = sentences(oracle, seed, rows)
    start = base(folder.parent / f"base-{seed}", written, seed, KNOWN)
    path = write_rows(folder.parent / f"rows-{seed}.jsonl", written)
    further = recipe(start, path, seed, train=FURTHER | {"steps": steps}, techniques=TECHNIQUES[kind])
    report, run = train(further, folder)
    return looked_at(run / "model", oracle, seed, rounds) | {"seconds": report.cost.seconds or 0.0}


EXPERIMENT = Experiment(
    name="discriminator_reward",
    techniques=("discriminator_reward",),
    question="Does a judge's reward make what a 0.8M model writes likelier under the chain it learned from than more training?",
    budget=f"{STEPS} further steps over the same {ROWS} sentences from the same model; writing comes on top",
    arms={kind: partial(arm, kind) for kind in TECHNIQUES},
    claims=(
        Claim("judge", "plain", "surprise", most=-0.01, shown=True),
        Claim("judge", "shuffled", "surprise", most=-0.01, shown=True),
        Claim("constant", "plain", "surprise", least=-0.02, most=0.02),
        Claim("judge", "plain", "surprise_cooled", most=0.0),
    ),
    seeds=5,
    placebo="shuffled",
)
