"""The augmentation experiment at toy size: its arms run, share their rows, and give the metrics that its claims ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from acceptance import augmentation
from uplift.testing.tiny import tiny_causal, tiny_rows, write_rows


def test_every_claim_names_two_arms_and_every_arm_its_kind() -> None:
    experiment = augmentation.EXPERIMENT
    assert {claim.arm for claim in experiment.claims} | {claim.against for claim in experiment.claims} <= set(experiment.arms)
    assert experiment.placebo in experiment.arms
    assert len(experiment.arms) == len(augmentation.SIZES) * len(augmentation.MODELS) * len(augmentation.KINDS)


def test_all_kinds_of_arms_run_at_toy_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {"use": "hf", "id": str(tiny_causal(tmp_path / "model"))}

    def rows(folder: Path, count: int, seed: int) -> dict[str, Any]:
        names = {"negative": "0", "positive": "1"}
        found = [{"text": row["text"], "label": names[row["label"]]} for row in tiny_rows("classify", 40)]
        section: dict[str, Any] = {"split": {"validation": 0.0, "test": 0.0}, "validation": None}
        for part, some in (("train", found[:count]), ("test", found[30:])):
            path = folder / f"{part}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            section[part] = {"use": "jsonl", "path": str(write_rows(path, some))}
        return section

    monkeypatch.setattr(augmentation, "few_reviews", rows)
    monkeypatch.setitem(augmentation.MODELS, "blank", (spec, 1e-3))
    for kind in augmentation.KINDS:
        found = augmentation.arm("blank", kind, 24, 0, tmp_path / "runs" / kind, steps=3)
        assert 0.0 <= found["accuracy"] <= 1.0 and 0.0 <= found["ece"] <= 1.0 and found["seconds"] > 0
