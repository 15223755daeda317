"""Two processes see the samples of one, step by step, and come to the same loss and weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.faults.harness import (
    ROOT,
    ForkServer,
    adapter_recipe,
    chat_recipe,
    classifier_recipe,
    elsewhere,
    logs,
    outcome,
    run_folder,
    start_together,
)

from uplift.core.recipe import Recipe

WIDER = {"use": "widen", "what": "hidden", "at": 0.6}
GENTLE = {"optimizer": {"eps": 1e-3}, "steps": 8, "save_every": 100}
"""With a tiny eps Adam turns the last digits of a tiny gradient into a full step."""
RECIPES = {
    "chat": lambda folder: chat_recipe(folder, train=GENTLE, techniques=[{"use": "neftune"}, {"use": "l2_sp"}]),
    "classifier": lambda folder: classifier_recipe(folder, train=GENTLE, techniques=[{"use": "fgm"}]),
    "adapter": lambda folder: adapter_recipe(folder, train=GENTLE),
    "growing": lambda folder: chat_recipe(folder, train=GENTLE, techniques=[{"use": "deepen", "at": 0.3}, WIDER]),
}
CLOSE = 1e-5


def _without_dropout(recipe: Recipe) -> Recipe:
    """Dropout masks belong to rows, and two processes have other rows; noise per sample stays."""
    file = Path(recipe.model.id) / "config.json"  # type: ignore[union-attr]
    settings = json.loads(file.read_text())
    settings.update({key: 0.0 for key in settings if "dropout" in key and isinstance(settings[key], float)})
    file.write_text(json.dumps(settings))
    return recipe


def _trained(server: ForkServer, recipe: Recipe, world: int) -> Path:
    assert [server.wait(pid) for pid in start_together(server, recipe, world)] == [0] * world, logs(recipe)
    return run_folder(recipe)


def _assert_alike(one: Path, two: Path, tolerance: float = CLOSE) -> None:
    left, right = ({(s, n): v for s, n, v in outcome(folder).metrics} for folder in (one, two))
    assert left.keys() == right.keys()
    for (step, name), value in left.items():
        if name == "samples_hash":
            assert right[step, name] == value, f"other samples at step {step}"
        else:
            assert right[step, name] == pytest.approx(value, rel=1e-4, abs=tolerance), f"{name} at step {step}"
        if name == "loss":
            assert right[step, name] == pytest.approx(value, abs=tolerance)
    for file in (one / "model").rglob("*.safetensors"):
        other = load_file(two / file.relative_to(one))
        for name, tensor in load_file(file).items():
            assert float((tensor - other[name]).abs().max()) <= tolerance, name


@pytest.mark.parametrize("name", list(RECIPES))
def test_two_processes_equal_one(server: ForkServer, tmp_path: Path, name: str) -> None:
    recipe = _without_dropout(RECIPES[name](tmp_path / "base"))
    one = _trained(server, elsewhere(recipe, tmp_path / "one"), 1)
    two = _trained(server, elsewhere(recipe, tmp_path / "two"), 2)
    _assert_alike(one, two)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_torchrun_starts_the_same_run(server: ForkServer, tmp_path: Path) -> None:
    recipe = _without_dropout(RECIPES["chat"](tmp_path / "base"))
    one = _trained(server, elsewhere(recipe, tmp_path / "one"), 1)
    launched = elsewhere(recipe, tmp_path / "torchrun")
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(launched.model_dump(mode="json")))
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "uplift"]
    done = subprocess.run(
        [sys.executable, *words, "run", str(file), "--json"],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    _assert_alike(one, run_folder(launched))
