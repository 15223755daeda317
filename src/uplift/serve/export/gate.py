"""The gate as a whole: an exported file in its runtime, its logits, tokens, task metric and cost beside the original's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from uplift.core.export_section import Format
from uplift.core.recipe import Task
from uplift.core.values import Sample
from uplift.data.chat import Encoder
from uplift.evaluate.tasks import Measured, evaluate_model, to_difference, to_interval
from uplift.model.language_model import LanguageModel
from uplift.serve.export.cost import ORIGINAL, Cost, cost_of, speed_rows
from uplift.serve.export.formats import FORMS, Limits
from uplift.serve.export.hush import hushed
from uplift.serve.export.metric import measured_export
from uplift.serve.export.original import logits_of
from uplift.serve.export.parity import Agreement, compare, differing_texts, probe_texts
from uplift.serve.export.plain import longest
from uplift.serve.export.runtimes import LlamaCpp, Opening, Runtime, open_runtime
from uplift.study.machine import choose_threads

ANSWER = 64
Tell = Callable[[str], None]
"""Called with one line that says what happens now."""


@dataclass(frozen=True)
class Trial:
    """What both are tried with: the opened model, rows of ids, and samples with their task where there is one."""

    model: LanguageModel
    encoder: Encoder
    rows: list[list[int]]
    samples: Sequence[Sample] = ()
    task: Task | None = None
    bootstrap: int = 2000


@dataclass(frozen=True)
class Metric:
    """The task metric with 95 % intervals, of the original and of the file, and their paired difference (file - original)."""

    name: str
    items: int
    original: dict[str, Any]
    exported: dict[str, Any]
    difference: dict[str, Any]


@dataclass(frozen=True)
class Parity:
    """What the gate found. ``problems``: what lies past the limits; ``size``: bytes of float32 weights, and of the file."""

    runtime: str
    limits: Limits
    agreement: Agreement
    texts: int
    differing: tuple[str, ...]
    problems: tuple[str, ...]
    original_size: int
    size: int
    metric: Metric | None = None
    original_cost: Cost | None = None
    cost: Cost | None = None


def parity_of(name: str, trial: Trial, target: Path, to: Format, limits: Limits, *, cost: bool, tell: Tell) -> Parity:
    """Compare the file in the folder ``target`` with the opened model; ``name``: how the model was asked for.

    ``cost``: measure speed and memory of both as well, where nothing lies past the limits.
    """
    model, form, file = trial.model, FORMS[to], target / FORMS[to].file
    padding = int(model.config.pad_token_id or 0)
    room = max(map(len, trial.rows)) if trial.task is None else trial.encoder.max_length
    context = room + ANSWER  # a label's words may be longer than those the row was cut for
    threads = choose_threads()
    tell(f"opening it in {form.runtime} and comparing {len(trial.rows)} rows")
    with hushed():
        runtime = open_runtime(to, Opening(str(file), threads, padding, context))
    agreement = compare(lambda row: logits_of(model, list(row)), runtime, trial.rows, batched=form.batches)
    texts, differing = _tokenizer_parity(model.tokenizer, runtime, target)
    problems = agreement.problems(limits)
    if differing:
        problems.append(f"{len(differing)} of {texts} texts become other tokens ({differing[0]})")
    metric = _metric(trial, runtime, tell) if trial.samples and trial.task is not None else None
    del runtime
    costs: list[Cost] = []
    if cost and not problems:
        rows = speed_rows(trial.rows, longest(model, room))
        for kind, place in ((ORIGINAL, name), (to, str(file))):
            tell(f"measuring speed and memory: {kind}")
            costs.append(cost_of(kind, place, rows, threads=threads, padding=padding, head=model.head_kind))
    return Parity(
        runtime=form.runtime,
        limits=limits,
        agreement=agreement,
        texts=texts,
        differing=tuple(differing),
        problems=tuple(problems),
        original_size=sum(4 * parameter.numel() for parameter in model.pretrained.parameters()),
        size=sum(path.stat().st_size for path in target.glob(f"{form.file}*")),
        metric=metric,
        original_cost=costs[0] if costs else None,
        cost=costs[1] if costs else None,
    )


def _tokenizer_parity(tokenizer: PreTrainedTokenizerBase, runtime: Runtime, target: Path) -> tuple[int, list[str]]:
    """How many texts were tried, and those that become other tokens: in llama.cpp, or by the tokenizer beside the file.

    A chat template that is not the original's counts as one more.
    """
    texts = probe_texts(tokenizer)
    template = str(tokenizer.chat_template or "")
    if isinstance(runtime, LlamaCpp):
        differing, found = differing_texts(tokenizer, runtime.tokens, texts), runtime.chat_template
    else:
        beside = AutoTokenizer.from_pretrained(target, local_files_only=True, trust_remote_code=False)
        differing = differing_texts(tokenizer, lambda text: list(beside(text)["input_ids"]), texts)
        found = str(beside.chat_template or "")
    if found != template:
        differing.append("the chat template is another one")
    return len(texts), differing


def _metric(trial: Trial, runtime: Runtime, tell: Tell) -> Metric:
    assert trial.task is not None
    tell(f"measuring both on {len(trial.samples)} rows")
    original: Measured = evaluate_model(trial.model, trial.samples, trial.task, trial.encoder, bootstrap=trial.bootstrap)
    exported = measured_export(
        runtime, trial.model, trial.samples, trial.task, trial.encoder, original, bootstrap=trial.bootstrap
    )
    gap = to_difference(exported, original, resamples=trial.bootstrap)
    return Metric(
        name=original.outcomes.metric,
        items=len(original.outcomes),
        original=to_interval(original.main).model_dump(),
        exported=to_interval(exported.main).model_dump(),
        difference=gap.model_dump(),
    )
