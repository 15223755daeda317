"""Uplift's side: its own model seam, learner, optimizer and engine, driven one step at a time."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from bench.gate import Gate
from bench.workload import LORA_ALPHA, Work, build_model, build_tokenizer
from uplift.core.recipe import AdamW, Schedule, Train
from uplift.core.registry import technique_class
from uplift.core.run import Run
from uplift.core.technique import Technique
from uplift.core.values import Corpus, Encoded, Origin, Progress, Sample
from uplift.learn.assemble import edit_model, frozen_depth, micro_tokens
from uplift.learn.engine import Engine
from uplift.learn.feed import Feed
from uplift.learn.learner import Learner
from uplift.learn.optim import apply_groups, build_optimizer, resolve_groups
from uplift.learn.parallel import Parallel
from uplift.learn.schedule import Horizon
from uplift.model.backbone import settle
from uplift.model.language_model import LanguageModel
from uplift.model.prefix_cache import PrefixCache

MANY = 10**8
"""More steps than any benchmark takes."""


class Done(Exception):
    """The orchestrator wants no more steps."""


class FixedFeed(Feed):
    """A feed whose steps are given, so that every system sees the same documents in the same step."""

    def __init__(self, encoded: Sequence[Encoded], plan: list[list[int]]) -> None:
        samples = [Sample(item.id, Origin("bench", index + 1), text="") for index, item in enumerate(encoded)]
        super().__init__(Corpus(samples, "train"), encoded, [], 0, MANY)
        self.plan = plan

    def steps(self, epoch: int, planned: float) -> list[list[int]]:
        """The same steps in every epoch."""
        return self.plan


def encode(work: Work, documents: Sequence[Sequence[int]]) -> list[Encoded]:
    """Documents with what is learned of them, as ``Work.labels`` says it to the peers."""
    items = []
    for index, ids in enumerate(documents):
        given = work.given(ids)
        items.append(Encoded(str(index), list(ids), [0.0] * given + [1.0] * (len(ids) - given)))
    return items


def open_language_model(work: Work, device: torch.device) -> LanguageModel:
    """The work's model behind Uplift's seam."""
    pretrained = build_model(work)
    pretrained.to(device)  # type: ignore[arg-type]
    tokenizer = build_tokenizer(work.shape.vocabulary)
    return LanguageModel(pretrained, tokenizer, settle(pretrained), kind="causal", head_kind="language")


def techniques_of(work: Work, home: Path, live: bool = False) -> list[Technique]:
    """LoRA on all linear layers, a freeze of the lower ones, a teacher (its answers are kept, unless ``live``), or nothing."""
    if work.teacher is not None:
        folder = home / "teacher"
        build_model(work, work.teacher).save_pretrained(folder)
        build_tokenizer(work.shape.vocabulary).save_pretrained(folder)
        teacher = {"use": "hf", "id": str(folder)}
        distill = {"use": "distill", "teacher": teacher, "weight": 1.0, "cache": not live}
        technique = technique_class("distill").model_validate(distill)
        technique.locate(home, home)
        return [technique]
    if work.frozen:
        freeze = {"use": "freeze", "below": work.frozen, "embeddings": True}
        return [technique_class("freeze").model_validate(freeze)]
    if work.rank is None:
        return []
    lora = {"use": "lora", "rank": work.rank, "alpha": float(LORA_ALPHA)}
    return [technique_class("lora").model_validate(lora)]


def build_engine(work: Work, model: LanguageModel, run: Run, parallel: Parallel, live: bool = False) -> Engine:
    """The engine as a run of the same recipe would have it, with nothing but training in it."""
    techniques = techniques_of(work, run.path, live)
    model = edit_model(model, techniques)
    settings = resolve_groups(model, techniques)
    trainable = apply_groups(model, settings)
    optimizer = build_optimizer(trainable, settings, AdamW(), work.lr)
    documents = [work.step(number) for number in range(work.steps)]
    encoded = encode(work, [document for step in documents for document in step])
    count = len(documents[0])
    feed = FixedFeed(encoded, [list(range(begin, begin + count)) for begin in range(0, len(encoded), count)])
    schedule = Schedule(use="constant", warmup=0.0)
    train = Train(steps=MANY, batch_tokens=2**20, lr=work.lr, schedule=schedule, save_every=MANY, clip=1.0)
    learner = Learner(model, techniques, known_layers(model, trainable, encoded) if work.frozen else None)
    engine = Engine(train, learner, trainable, optimizer, work.lr, feed, Horizon(steps=MANY), [], run, parallel, {}, work.seed)
    engine.state.micro_tokens = micro_tokens(train, parallel.device.type, work.shape.hidden)
    for technique in techniques:
        technique.begin(model, trainable)
    return engine


def known_layers(model: LanguageModel, trainable: dict[str, nn.Parameter], encoded: Sequence[Encoded]) -> PrefixCache:
    """The outputs of the frozen layers, as they are from the second epoch on."""
    cache = PrefixCache(model, frozen_depth(model, trainable))
    for _ in cache.fill(encoded):
        pass
    return cache


def train(
    work: Work,
    gate: Gate,
    device: str = "cpu",
    precision: torch.dtype = torch.float32,
    compiled: bool = False,
    live: bool = False,
) -> None:
    """Train until the gate says stop. Loop, metrics database and all are the real ones; only checkpoints are left out."""
    torch.set_num_threads(work.threads)
    parallel = Parallel(torch.device(device), precision=precision)
    model = open_language_model(work, parallel.device)
    with tempfile.TemporaryDirectory() as folder, Run.create({}, Path(folder), "bench", "0" * 12) as run:
        engine = build_engine(work, model, run, parallel, live)
        if compiled:
            for layer in model.layers:
                layer.compile(dynamic=True)
        engine.report = _turns(work, gate)
        with contextlib.suppress(Done):
            engine.train()


def train_live(work: Work, gate: Gate) -> None:
    """The same with a teacher that is asked at every step."""
    train(work, gate, live=True)


def _turns(work: Work, gate: Gate) -> Callable[[Progress, Mapping[str, float]], None]:
    """Waits for the first command now, then reports each step and waits for the next. The report raises Done at the end."""
    number = gate.begin()

    def report(progress: Progress, metrics: Mapping[str, float]) -> None:
        nonlocal number
        if number is not None:
            gate.end(sum(map(len, work.step(number))), metrics["loss"])
            number = gate.begin()
        if number is None:
            raise Done

    return report
