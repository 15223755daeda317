"""The engine's steps are the steps of a plain loop, and of transformers' Trainer, on the same batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.equivalence.test_packing import padded, padded_loss
from tests.learn.engines import distance, losses, make_engine, open_tiny, weights
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from uplift.core.recipe import Schedule
from uplift.core.values import Encoded
from uplift.learn.engine import Engine
from uplift.learn.schedule import lr_factor

STEPS = 8
EPS = 1e-3
"""With a tiny eps Adam makes a full step of a gradient that is a rounding error (a key bias's is 0 in theory)."""


def _engine(folder: Path, head: str, decay: float, **train: Any) -> Engine:
    settings = {"steps": STEPS, "lr": 5e-3, "optimizer": {"weight_decay": decay, "betas": [0.9, 0.95], "eps": EPS}, **train}
    return make_engine(folder, head=head, train=settings, validation=0)


def _batches(engine: Engine) -> Iterator[list[Encoded]]:
    for indices in engine.feed.steps(0, engine.planned)[:STEPS]:
        yield [engine.feed.encoded[index] for index in indices]


@pytest.mark.parametrize("head", ["language", "class"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_engine_equals_a_plain_adamw_loop(tmp_path: Path, head: str, decay: float) -> None:
    engine = _engine(tmp_path, head, decay, steps=5)
    model = open_tiny(tmp_path / f"model-{head}", head=head).train()
    parameters = model.parameters_by_name()
    groups = [
        {"params": [p for p in parameters.values() if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in parameters.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    plain = torch.optim.AdamW(groups, lr=5e-3, betas=(0.9, 0.95), eps=EPS, fused=False, foreach=False)
    wanted = []
    for number, items in enumerate(list(_batches(engine))[:5]):
        units = len(items) if head == "class" else sum(sum(item.weights) for item in items)
        loss = padded_loss(model, items) / units
        wanted.append(loss.item())
        plain.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)
        for group in plain.param_groups:
            group["lr"] = 5e-3 * lr_factor(Schedule(), (number + 0.5) / 5)
        plain.step()
    engine.train()
    assert losses(engine) == pytest.approx(wanted, rel=1e-6)
    assert distance(weights(engine), {name: value.detach() for name, value in parameters.items()}) < 1e-6


class _OneRowPerStep(Dataset):  # type: ignore[type-arg]
    """Each step's batch, made ready."""

    def __init__(self, batches: list[list[Encoded]]) -> None:
        self.rows = []
        for items in batches:
            ids, mask = padded(items, left=False)
            labels = torch.full_like(ids, -100)
            for row, item in enumerate(items):
                labels[row, 1 : len(item)] = ids[row, 1 : len(item)]
            self.rows.append({"input_ids": ids, "attention_mask": mask, "labels": labels})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.rows[index]


def test_the_engine_equals_transformers_trainer(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    engine = _engine(tmp_path, "language", 0.0, steps=3, schedule={"use": "constant", "warmup": 0.0})
    for index, item in enumerate(engine.feed.encoded):  # the Trainer's loss knows no weights
        engine.feed.encoded[index] = Encoded(item.id, item.ids, [0.0] + [1.0] * (len(item) - 1))  # type: ignore[index]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "trainer"),
        max_steps=3,
        per_device_train_batch_size=1,
        learning_rate=5e-3,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        adam_epsilon=EPS,
        weight_decay=0.0,
        max_grad_norm=1.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        seed=0,
    )
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model-language")

    class InOrder(Trainer):
        def _get_train_sampler(self, *arguments: Any) -> torch.utils.data.Sampler:  # type: ignore[type-arg]
            return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    data = _OneRowPerStep(list(_batches(engine))[:3])
    trainer = InOrder(model=plain, args=arguments, train_dataset=data, data_collator=lambda rows: rows[0])
    trainer.train()
    wanted = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    engine.train()
    assert losses(engine) == pytest.approx(wanted, abs=1e-4)  # it logs about four digits; the weights tell more
    assert distance(weights(engine), {name: value.detach() for name, value in plain.named_parameters()}) < 1e-5
