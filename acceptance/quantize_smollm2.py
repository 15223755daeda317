"""What 4 bits cost a real language model: plain rounding, GPTQ and AWQ on SmolLM2-135M, measured against the model itself.

The measure is how far the predictions move (KL divergence from the exact model's): a small model that is unsure of a text may
lose bits per byte, or gain some, by noise that takes it further from what it was.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from acceptance.protocol import Claim, Experiment, Metrics
from acceptance.quantization import UNTRAINED, texts
from acceptance.training import bits_per_byte, opened, train
from uplift.core.model_section import PackageModel
from uplift.core.source_section import FileSource
from uplift.core.values import Batch, Corpus, Origin, Sample
from uplift.data.sources import read_source
from uplift.model.language_model import LanguageModel
from uplift.model.opening import open_model
from uplift.techniques.calibration import packed_rows, training_rows

MODEL = "smollm2-135m-instruct"
TEST, CALIBRATION, COMPARED = 200, 128, 100
FOUR: dict[str, Any] = {"use": "quantize", "bits": 4, "group": 64, "rows": CALIBRATION}


def logits_of(model: LanguageModel, batch: Batch) -> torch.Tensor:
    """(T, V) log probabilities of the next token."""
    hidden = model.hidden(model.embed(batch.ids), batch.positions, batch.lengths)
    return model.logits(hidden[0]).log_softmax(-1)


@torch.no_grad()
def moved(folder: Path, file: Path) -> Metrics:
    """KL divergence (nats a token) of a saved model's predictions from the exact ones, and in per cent how often both agree."""
    exact = open_model(PackageModel(name=MODEL), head="language", base_dir=Path(), device=torch.device("cpu"), seed=0).eval()
    found = opened(folder, "language")
    rows = read_source(FileSource(path=str(file)), Path()).rows[:COMPARED]
    samples = [Sample(str(i), Origin("test", i), text=str(row.values["text"])) for i, row in enumerate(rows)]
    divergence = agreed = count = 0.0
    for batch in packed_rows(exact, training_rows(exact, Corpus(samples, "test"), COMPARED, "moved")):
        right, now = logits_of(exact, batch), logits_of(found, batch)
        divergence += float((right.exp() * (right - now)).sum())
        agreed += float((right.argmax(-1) == now.argmax(-1)).sum())
        count += len(right)
    return {"divergence": divergence / count, "agreement": 100.0 * agreed / count}


def arm(techniques: list[dict[str, Any]], seed: int, folder: Path, *, rows: str = "train") -> Metrics:
    """How far the predictions move, and bits per byte; each seed has other calibration rows."""
    files = texts(folder.parent / "texts")
    data: dict[str, Any] = {"split": {"validation": 0.0, "test": 0.0}}
    lines = files[rows].read_text(encoding="utf-8").splitlines(keepends=True)
    part = folder.parent / f"{rows}-{seed}.jsonl"
    part.write_text("".join(lines[seed * CALIBRATION : (seed + 1) * CALIBRATION]), encoding="utf-8")
    for name, file in (("train", part), ("test", files["test"])):
        data[name] = {"use": "jsonl", "path": str(file)}
    recipe = {
        "model": {"use": "package", "name": MODEL},
        "data": data,
        "task": {"use": "text"},
        "train": UNTRAINED,
        "evaluate": {"base": False, "limit": TEST},
    }
    report, run = train(recipe, folder, techniques=techniques, seed=seed)
    return {"bits_per_byte": bits_per_byte(report), **moved(run / "model", files["test"])}


AWAY = "divergence"
EXPERIMENT = Experiment(
    name="quantize_smollm2",
    techniques=("quantize",),
    question="Do GPTQ and AWQ move the predictions of SmolLM2-135M less than plain rounding to 4 bits does?",
    budget=f"groups of 64, symmetric; {CALIBRATION} film reviews to look at, others for each seed, and others to measure on",
    arms={
        "int4": partial(arm, [FOUR]),
        "gptq": partial(arm, [FOUR | {"method": "gptq"}]),
        "gptq_noise": partial(arm, [FOUR | {"method": "gptq"}], rows="noise"),
        "awq": partial(arm, [FOUR | {"method": "awq"}]),
    },
    claims=(
        Claim("gptq", "int4", AWAY, most=0.0, shown=True),
        Claim("awq", "int4", AWAY, most=0.0, shown=True),
        Claim("gptq", "gptq_noise", AWAY, most=0.0, shown=True),
    ),
    seeds=3,
    placebo="gptq_noise",
)
