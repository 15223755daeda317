"""The untouched model on the test rows, measured once and remembered by content: many runs start from the same model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from uplift.core.recipe import Task
from uplift.core.storage import write_atomically
from uplift.core.values import Sample
from uplift.data.chat import Encoder
from uplift.evaluate.outcomes import Outcomes
from uplift.evaluate.statistics import Interval
from uplift.evaluate.tasks import Measured, evaluate_model
from uplift.model.language_model import LanguageModel


def measured_base(
    model: LanguageModel,
    samples: Sequence[Sample],
    task: Task,
    encoder: Encoder,
    folder: Path,
    *,
    seed: int,
    bootstrap: int,
    batch_tokens: int,
) -> Measured:
    """``evaluate_model`` of an unchanged model, from ``folder`` when the same question was answered before.

    See ``question_key`` for what makes the question the same.
    """
    key = question_key(model, samples, task, encoder.max_length, seed, bootstrap)
    file = folder / f"{key}.json"
    known = _read(file)
    if known is not None:
        return known
    measured = evaluate_model(model, samples, task, encoder, bootstrap=bootstrap, batch_tokens=batch_tokens)
    content = {
        "outcomes": measured.outcomes.to_json(),
        "metrics": {name: [i.value, i.low, i.high, i.method] for name, i in measured.metrics.items()},
        "seconds": measured.seconds,
    }
    write_atomically(file, json.dumps(content))
    return measured


def question_key(
    model: LanguageModel, samples: Sequence[Sample], task: Task, max_length: int, seed: int, *settings: object
) -> str:
    """24 hex digits that name a measurement of an unchanged model.

    They cover weights, tokenizer, head, task, rows with labels, and the ``settings`` (JSON values) that shape the numbers; for
    a class head, which can be new and random, also the ``seed`` it was made from.
    """
    asked = [
        sorted(model.identity.items()),
        model.head_kind,
        seed if model.head_kind == "class" else None,
        list(model.labels),
        task.model_dump(mode="json"),
        [(sample.id, sample.label) for sample in samples],
        max_length,
        *settings,
    ]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:24]


def _read(file: Path) -> Measured | None:
    """A remembered measurement; anything unreadable counts as not remembered (it is only a saving of time)."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        metrics = {name: Interval(*values) for name, values in content["metrics"].items()}
        return Measured(Outcomes.from_json(content["outcomes"]), metrics, seconds=content["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
