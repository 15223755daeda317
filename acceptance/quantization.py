"""What 8, 4 and 3 bits cost a small language model, by method; with GPTQ calibrated on noise as the placebo."""

from __future__ import annotations

import json
import random
import string
from functools import partial
from pathlib import Path
from typing import Any

from acceptance.protocol import Claim, Experiment, Metrics
from acceptance.small import SHAPE
from acceptance.training import bits_per_byte, reviews, train
from uplift.core.storage import write_atomically
from uplift.testing.tiny import tiny_causal, write_rows

TEST_ROWS, VALIDATION_ROWS, CALIBRATION_ROWS = 600, 200, 256
BASE = {"epochs": 3, "batch_tokens": 4096, "max_length": 256, "lr": 2e-3}
FURTHER = {"epochs": 1, "batch_tokens": 4096, "max_length": 256, "lr": 5e-4}
UNTRAINED = {"steps": 0, "max_length": 256}
GROUP = 64


def texts(folder: Path, most: int | None = None) -> dict[str, Path]:
    """Film reviews in three files, the same for all seeds, and lines of random letters of the same lengths."""
    found = sorted({text for text, _ in reviews("rotten_tomatoes")})
    random.Random(0).shuffle(found)
    found = found[:most]
    cuts = {"test": found[:TEST_ROWS], "validation": found[TEST_ROWS : TEST_ROWS + VALIDATION_ROWS]}
    cuts["train"] = found[TEST_ROWS + VALIDATION_ROWS :]
    draw = random.Random(1)
    cuts["noise"] = ["".join(draw.choices(string.printable, k=len(text))) for text in cuts["train"][: 4 * CALIBRATION_ROWS]]
    folder.mkdir(parents=True, exist_ok=True)
    return {part: write_rows(folder / f"{part}.jsonl", [{"text": text} for text in rows]) for part, rows in cuts.items()}


def recipe(model: Path, files: dict[str, Path], rows: str = "train") -> dict[str, Any]:
    """Language modelling of the reviews, from the model in a folder."""
    section: dict[str, Any] = {"split": {"validation": 0.0, "test": 0.0}}
    for part, file in (("train", rows), ("validation", "validation"), ("test", "test")):
        section[part] = {"use": "jsonl", "path": str(files[file])}
    return {
        "model": {"use": "hf", "id": str(model)},
        "data": section,
        "task": {"use": "text"},
        "evaluate": {"base": False},
    }


def measured(
    home: Path, name: str, model: Path, files: dict[str, Path], section: dict[str, Any], seed: int, **changes: Any
) -> tuple[float, float, Path]:
    """(bits per byte, megabytes, run folder) of a run that is made once and remembered."""
    kept, rows = home / f"{name}.json", changes.pop("rows", "train")
    if not kept.exists():
        report, run = train(recipe(model, files, rows), home / name, train=section, seed=seed, **changes)
        size = (report.cost.model_bytes or 0) / 1e6
        write_atomically(kept, json.dumps({"bits": bits_per_byte(report), "size": size, "run": str(run)}))
    found = json.loads(kept.read_text(encoding="utf-8"))
    return found["bits"], found["size"], Path(found["run"])


def started(seed: int, folder: Path) -> tuple[Path, dict[str, Path], Path]:
    """(folder of this seed, data, the trained model that all arms share)."""
    home, files = folder.parent / f"seed-{seed}", texts(folder.parent / "texts")
    fresh = home / "start"
    if not (fresh / "config.json").exists():
        tiny_causal(fresh, seed=seed, initializer_range=0.02, **SHAPE)
    _, _, run = measured(home, "base", fresh, files, BASE, seed)
    return home, files, run / "model"


def arm(seed: int, folder: Path, *, rows: str = "train", **options: Any) -> Metrics:
    """`quantize` with these options on the trained model; ``recovered``: per cent of plain 4-bit rounding's loss won back."""
    home, files, model = started(seed, folder)
    exact = measured(home, "base", model, files, BASE, seed)[0]
    plain = {"use": "quantize", "bits": 4, "group": GROUP}
    worst = measured(home, "int4", model, files, UNTRAINED, seed, techniques=[plain])[0] - exact
    name = "-".join([rows, *(f"{key}-{value}" for key, value in sorted(options.items()))])
    technique = {"use": "quantize", "rows": CALIBRATION_ROWS, **options}
    bits, size, _ = measured(home, name, model, files, UNTRAINED, seed, techniques=[technique], rows=rows)
    return {"bits_per_byte": bits, "recovered": 100.0 * (1.0 - (bits - exact) / worst), "megabytes": size}


def exact(seed: int, folder: Path) -> Metrics:
    """The trained model as it is."""
    home, files, model = started(seed, folder)
    bits, size, _ = measured(home, "base", model, files, BASE, seed)
    return {"bits_per_byte": bits, "recovered": 100.0, "megabytes": size}


def three_bits(seed: int, folder: Path, *, use: str) -> Metrics:
    """One more epoch, in three bits (`qat`) or exactly and rounded afterwards; ``recovered_3`` against the latter's loss."""
    home, files, model = started(seed, folder)
    both = {"bits": 3, "group": GROUP}
    further = partial(measured, home, model=model, files=files, section=FURTHER, seed=seed)
    floor = further(name="further")[0]
    rounded = further(name="further-quantize", techniques=[{"use": "quantize", "scheme": "symmetric", **both}])[0]
    bits = rounded if use == "quantize" else further(name=f"further-{use}", techniques=[{"use": use, **both}])[0]
    return {"bits_per_byte": bits, "recovered_3": 100.0 * (rounded - bits) / (rounded - floor)}


FOUR: dict[str, Any] = {"bits": 4, "group": GROUP}

EXPERIMENT = Experiment(
    name="quantization",
    techniques=("quantize", "qat"),
    question="How much of what 4 and 3 bits cost a Llama of 0.9M parameters on film reviews do GPTQ, AWQ, HQQ, QAT win back?",
    budget="the same trained model; 256 rows for calibration; one more epoch in all three-bit arms",
    arms={
        "float32": exact,
        "int8": partial(arm, bits=8),
        "int8_activations": partial(arm, bits=8, activations="int8"),
        "int4": partial(arm, **FOUR),
        "int4_asymmetric": partial(arm, **FOUR, scheme="asymmetric"),
        "gptq": partial(arm, **FOUR, method="gptq"),
        "gptq_noise": partial(arm, **FOUR, method="gptq", rows="noise"),
        "awq": partial(arm, **FOUR, method="awq"),
        "hqq": partial(arm, **FOUR, method="hqq"),
        "int3": partial(three_bits, use="quantize"),
        "int3_qat": partial(three_bits, use="qat"),
    },
    claims=(
        Claim("int8", "float32", "bits_per_byte", most=0.005),
        Claim("int8_activations", "float32", "bits_per_byte", most=0.01),
        Claim("gptq", "int4", "recovered", least=40.0, shown=True),
        Claim("awq", "int4", "recovered", least=40.0, shown=True),
        Claim("hqq", "int4_asymmetric", "recovered", least=0.0, shown=True),
        Claim("gptq", "gptq_noise", "recovered", least=0.0, shown=True),
        Claim("int3_qat", "int3", "recovered_3", least=60.0, shown=True),
    ),
    seeds=3,
    placebo="gptq_noise",
)
