"""One forward of a tiny model on random tokens: enough to check a technique's arithmetic without a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from uplift.core.recipe import HfModel
from uplift.core.values import Batch, Encoded, Progress
from uplift.data.packing import pack
from uplift.learn.forward import ForwardPass
from uplift.model.language_model import LanguageModel
from uplift.model.opening import open_model


def open_tiny(folder: Path, head: Literal["language", "class"] = "language") -> LanguageModel:
    """A fresh copy of a saved model on the CPU; a class head has the labels negative and positive."""
    labels = ("negative", "positive") if head == "class" else ()
    return open_model(HfModel(id=str(folder)), head=head, labels=labels, base_dir=Path(), device=torch.device("cpu"), seed=0)


def random_samples(lengths: tuple[int, ...], seed: int = 1, vocabulary: int = 160) -> list[Encoded]:
    """Random tokens; all but the first two of a sample are learned; labels alternate."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for index, length in enumerate(lengths):
        ids = torch.randint(5, vocabulary, (length,), generator=generator).tolist()
        weights = [0.0 if place < 2 else 1.0 for place in range(length)]
        samples.append(Encoded(id=f"sample-{index}", ids=ids, weights=weights, label=index % 2))
    return samples


def random_batch(lengths: tuple[int, ...] = (7, 5, 9), *, step: int = 3, seed: int = 1, vocabulary: int = 160) -> Batch:
    """``random_samples`` as one packed row."""
    return pack(random_samples(lengths, seed, vocabulary), device="cpu", progress=Progress(step=step), seed=seed)


def forward_pass(model: LanguageModel, batch: Batch, technique: Any = None) -> ForwardPass:
    """One pass whose embeddings ask for a gradient, through ``technique``'s ``embed`` if one is given."""
    embeddings = model.embed(batch.ids)
    if not embeddings.requires_grad:
        embeddings.requires_grad_(True)
    return ForwardPass(model, batch, technique.embed(embeddings, batch) if technique else embeddings)


@torch.no_grad()
def outputs(model: LanguageModel, batch: Batch) -> Tensor:
    """What the head says: logits (1, T, V) of all positions, or (N, C) of all samples."""
    hidden = model.hidden(model.embed(batch.ids), batch.positions, batch.lengths)
    return model.class_logits(hidden, batch.lengths) if model.head_kind == "class" else model.logits(hidden)


def train_steps(model: LanguageModel, technique: Any, batch: Batch, steps: int = 3, lr: float = 1e-2) -> dict[str, Any]:
    """A few plain AdamW steps with the technique's update seams called in the engine's order; returns the parameters."""
    parameters = {name: p for name, p in model.parameters_by_name().items() if p.requires_grad}
    technique.begin(model, parameters)
    optimizer = torch.optim.AdamW(parameters.values(), lr=lr, weight_decay=0.0)
    model.train()
    for step in range(steps):
        forward = forward_pass(model, batch, technique)
        loss = forward.losses.cross_entropy / forward.count
        loss = loss + sum(term.sum / term.count for term in technique.terms(forward, batch).values())
        loss.backward()
        technique.gradients(parameters, Progress(step=step))
        optimizer.step()
        technique.after_update(parameters, Progress(step=step), lr)
        optimizer.zero_grad()
    model.eval()
    return parameters
