"""Ten steps of three tiny recipes. ``python -m tests.golden.trajectories`` records them anew; say why in the commit."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from uplift.core.recipe import Recipe
from uplift.core.run import Run
from uplift.learn.assemble import assemble, build_engine
from uplift.learn.parallel import Parallel
from uplift.testing.tiny import tiny_encoder, tiny_recipe

FILE = Path(__file__).with_name("trajectories.json")
STEPS = 10
TRAIN: Mapping[str, Any] = {"steps": STEPS, "batch_tokens": 192, "micro_tokens": 96, "lr": 5e-3}


def _encoder(folder: Path) -> Recipe:
    tiny_encoder(folder / "model")
    return tiny_recipe(folder, "classify", train=TRAIN, techniques=[{"use": "label_smoothing"}, {"use": "fgm"}])


RECIPES: Mapping[str, Callable[[Path], Recipe]] = {
    "causal-full": lambda folder: tiny_recipe(folder, "text", train=TRAIN),
    "causal-adapter": lambda folder: tiny_recipe(
        folder, "chat", train={**TRAIN, "schedule": {"use": "cosine"}}, techniques=[{"use": "lora", "rank": 4}]
    ),
    "encoder-classifier": _encoder,
}


def trajectory(name: str, folder: Path) -> dict[str, list[float]]:
    """Loss and gradient norm of every step of one recipe."""
    recipe, parallel = RECIPES[name](folder), Parallel(torch.device("cpu"))
    torch.set_num_threads(1)
    assembly = assemble(recipe, folder, parallel)
    with Run.create(recipe.model_dump(mode="json"), folder / "runs", name, "golden") as run:
        engine = build_engine(assembly, run, parallel, lambda progress, metrics: None, lambda audit: None)
        engine.train()
        return {metric: [value for _, _, value in run.metrics(metric)] for metric in ("loss", "gradient_norm")}


def record() -> None:
    """Write ``trajectories.json``."""
    with tempfile.TemporaryDirectory() as place:
        found = {name: trajectory(name, Path(place) / name) for name in RECIPES}
    FILE.write_text(json.dumps({"torch": torch.__version__, "trajectories": found}, indent=1) + "\n")
    sys.stdout.write(f"recorded {', '.join(found)} in {FILE}\n")


if __name__ == "__main__":
    record()
