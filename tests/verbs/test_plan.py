"""``uplift plan`` with and without real steps."""

from __future__ import annotations

from pathlib import Path

from uplift.testing.tiny import tiny_recipe
from uplift.verbs.plan import plan


def test_probe_measures_the_speed_and_leaves_nothing(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, techniques=[{"use": "lora"}])
    guessed = plan(recipe, tmp_path)
    probed = plan(recipe, tmp_path, probe=True)
    assert not guessed.calibrated and probed.calibrated
    assert probed.seconds > 0 and probed.peak_memory_bytes > 50 * 2**20
    assert probed.structure == guessed.structure and not (tmp_path / "runs").exists()


def test_probe_of_a_recipe_that_trains_nothing_is_the_plan(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, train={"steps": 0})
    assert not plan(recipe, tmp_path, probe=True).calibrated
