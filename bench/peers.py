"""The other trainers: transformers' Trainer and TRL's SFTTrainer as users run them, and plain loops as an expert tunes them.

What is changed from their defaults, always in their favour: fp32 and no gradient checkpointing (TRL's defaults, bf16 and
checkpointing, are far slower on a CPU), a constant learning rate, no checkpoints, no progress bar. The order of the documents
is fixed so that all systems see the same ones in the same step.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DataCollatorForSeq2Seq, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from bench.gate import Gate
from bench.workload import IGNORED, LINEAR_NAMES, LORA_ALPHA, POOL, ROW, Work, build_model, build_tokenizer

Row = dict[str, list[int]]
STEPS = 10**6
"""More steps than any benchmark takes."""


def lora_config(rank: int) -> Any:
    """PEFT's LoRA on all linear layers, without dropout."""
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=LORA_ALPHA, lora_dropout=0.0, target_modules=LINEAR_NAMES, task_type="CAUSAL_LM")


def adapted_model(work: Work) -> nn.Module:
    """The model, with PEFT's LoRA in it or its lower layers frozen if the work says so."""
    model = build_model(work)
    if work.frozen:
        for part in (model.model.embed_tokens, *model.model.layers[: work.frozen]):
            part.requires_grad_(False)
    if work.rank is None:
        return model
    from peft import get_peft_model

    return get_peft_model(model, lora_config(work.rank))  # type: ignore[no-any-return]


def rows(work: Work, documents: Sequence[Sequence[int]]) -> list[Row]:
    """Documents as a trainer's data set wants them."""
    return [
        {"input_ids": list(document), "attention_mask": [1] * len(document), "labels": work.labels(document)}
        for document in documents
    ]


# -- plain loops -------------------------------------------------------------------------------------------------------
def train_by_document(work: Work, gate: Gate) -> None:
    """One document per forward, gradients accumulated over the step: no padding at all."""
    _train_loop(work, gate, [[[document] for document in work.step(number)] for number in range(work.steps)])


def train_together(work: Work, gate: Gate) -> None:
    """All documents of a step in one forward: no padding where they are equally long."""
    _train_loop(work, gate, [[work.step(number)] for number in range(work.steps)])


def train_grouped(work: Work, gate: Gate) -> None:
    """Batches of documents of equal length (nearly), drawn from 50 steps' worth; about as many tokens a step as the others."""
    pool = sorted(work.documents(POOL), key=len)
    groups = [pool[begin : begin + work.batch] for begin in range(0, len(pool), work.batch)]
    plan = []
    for number in range(work.steps):
        wanted = sum(map(len, work.step(number)))
        nearest = min(groups, key=lambda group: abs(sum(map(len, group)) - wanted))
        plan.append([nearest])
    _train_loop(work, gate, plan)


def train_taught(work: Work, gate: Gate) -> None:
    """Distillation as a plain loop has it: teacher and student on the same padded rows, KL(teacher || student)."""
    torch.set_num_threads(work.threads)
    model, teacher = build_model(work).train(), build_model(work, work.teacher).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=work.lr, weight_decay=0.0, fused=True)
    while (number := gate.begin()) is not None:
        documents = work.step(number)
        batch = _padded(work, documents)
        learned = batch.pop("labels")[:, 1:] != IGNORED
        with torch.no_grad():
            wanted = teacher(**batch).logits[:, :-1][learned].log_softmax(-1)
        found = model(**batch).logits[:, :-1][learned].log_softmax(-1)
        loss = nn.functional.kl_div(found, wanted, log_target=True, reduction="batchmean")
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        gate.end(sum(map(len, documents)), loss.item())


def _train_loop(work: Work, gate: Gate, plan: list[list[list[list[int]]]]) -> None:
    """``plan``: step -> micro-batch -> document -> tokens. AdamW fused, clipping at 1."""
    torch.set_num_threads(work.threads)
    model = adapted_model(work).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=work.lr, weight_decay=0.0, fused=True)
    while (number := gate.begin()) is not None:
        micro_batches = plan[number % len(plan)]
        learned = sum(work.learned(batch) for batch in micro_batches)
        total = 0.0
        for batch in micro_batches:
            loss = model(**_padded(work, batch), num_items_in_batch=torch.tensor(learned)).loss
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        gate.end(sum(len(document) for batch in micro_batches for document in batch), total)


def _padded(work: Work, documents: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    ids = pad_sequence([torch.tensor(document) for document in documents], batch_first=True, padding_value=1)
    targets = [torch.tensor(work.labels(document)) for document in documents]
    inputs = {"input_ids": ids, "labels": pad_sequence(targets, batch_first=True, padding_value=IGNORED)}
    if len({len(document) for document in documents}) > 1:
        ones = [torch.ones(len(document), dtype=torch.long) for document in documents]
        inputs["attention_mask"] = pad_sequence(ones, batch_first=True)
    return inputs


# -- trainers ----------------------------------------------------------------------------------------------------------
class Turns(TrainerCallback):
    """Makes a trainer wait for its turn before each step and report after it."""

    def __init__(self, gate: Gate) -> None:
        self.gate, self.tokens, self.loss = gate, 0, 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.gate.begin() is None:
            raise EOFError

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.gate.end(self.tokens, self.loss)


def watched(base: type[Trainer], turns: Turns) -> Any:
    """The trainer's class with one addition: it remembers each step's loss and real tokens."""

    class Watched(base):  # type: ignore[valid-type, misc]
        def training_step(self, model: nn.Module, inputs: dict[str, Tensor], *others: Any, **options: Any) -> Tensor:
            mask = inputs.get("attention_mask")
            turns.tokens = int(mask.sum()) if mask is not None else inputs["input_ids"].numel()
            loss: Tensor = super().training_step(model, inputs, *others, **options)
            turns.loss = float(loss)
            return loss

    return Watched


def _common_arguments(work: Work, folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "max_steps": STEPS,
        "learning_rate": work.lr,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": work.batch,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
        "seed": work.seed,
    }


def train_trainer(work: Work, gate: Gate, changes: dict[str, Any] | None = None) -> None:
    """transformers' Trainer: a step is one batch padded to its longest document. ``changes``: other training arguments."""
    torch.set_num_threads(work.threads)
    turns = Turns(gate)
    changes = {"use_cpu": True} if changes is None else changes
    tokenizer = build_tokenizer(work.shape.vocabulary)
    documents = [document for number in range(work.steps) for document in work.step(number)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = watched(Trainer, turns)(
            model=adapted_model(work),
            args=TrainingArguments(**_common_arguments(work, folder) | changes),
            train_dataset=rows(work, documents),
            data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED),
            callbacks=[turns],
        )
        trainer.train()


def train_trl(work: Work, gate: Gate) -> None:
    """TRL's SFTTrainer: a step's documents in one batch, padded."""
    _train_trl(work, gate, work.steps, {})


def train_trl_packed(work: Work, gate: Gate) -> None:
    """TRL's SFTTrainer with ``packing=True``: rows of up to 1024 tokens, as many a step as its documents fill."""
    filled = max(1, round(sum(map(len, work.documents(POOL))) / POOL / ROW))
    _train_trl(work, gate, POOL, {"packing": True, "max_length": ROW, "per_device_train_batch_size": filled})


def _train_trl(work: Work, gate: Gate, steps: int, changes: dict[str, Any]) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

    torch.set_num_threads(work.threads)
    turns = Turns(gate)
    documents = work.documents(steps)
    data = Dataset.from_list([{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows(work, documents)])
    model: PreTrainedModel = build_model(work)
    with tempfile.TemporaryDirectory() as folder:
        options = _common_arguments(work, folder) | {"bf16": False, "gradient_checkpointing": False, "use_cpu": True}
        trainer = watched(SFTTrainer, turns)(
            model=model,
            args=SFTConfig(**options | changes),
            train_dataset=data,
            processing_class=build_tokenizer(work.shape.vocabulary),
            peft_config=None if work.rank is None else lora_config(work.rank),
            callbacks=[turns],
        )
        trainer.train()
