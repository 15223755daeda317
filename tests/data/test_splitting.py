"""Splits: duplicates stay on one side, shares hold, adding rows moves no other."""

from __future__ import annotations

import random

from uplift.core.recipe import Split
from uplift.core.values import Origin, Sample
from uplift.data.formats import sample_id
from uplift.data.splitting import normalized, split

SETTINGS = Split(validation=0.1, test=0.2, seed=3)


def sample(text: str, group: str | None = None, line: int = 1) -> Sample:
    return Sample(sample_id(text), Origin("f", line), text=text, group=group)


def test_shares_hold_and_parts_cover() -> None:
    samples = [sample(f"text {index}", line=index) for index in range(10_000)]
    parts = split(samples, SETTINGS)
    assert sorted(s.origin.line for part in parts.values() for s in part) == list(range(10_000))
    # Five standard deviations of a binomial share.
    assert abs(len(parts["test"]) / 10_000 - 0.2) < 5 * (0.2 * 0.8 / 10_000) ** 0.5
    assert abs(len(parts["validation"]) / 10_000 - 0.1) < 5 * (0.1 * 0.9 / 10_000) ** 0.5


def test_duplicates_never_straddle_whatever_their_case_and_spacing() -> None:
    rng = random.Random(0)
    samples = []
    for index in range(500):
        text = f"Some Text number {index}"
        variants = [text, text.upper(), f"  {text}\n", text.replace(" ", "   ")]
        samples += [sample(rng.choice(variants)) for _ in range(4)]
    parts = split(samples, SETTINGS)
    contents = {name: {normalized(s.text or "") for s in part} for name, part in parts.items()}
    assert all(contents.values())
    assert not contents["train"] & contents["test"] and not contents["train"] & contents["validation"]
    assert not contents["test"] & contents["validation"]


def test_groups_never_straddle() -> None:
    settings = Split(test=0.5, by="group", group="doc")
    samples = [sample(f"text {index}", group=str(index % 40)) for index in range(400)]
    parts = split(samples, settings)
    assert parts["test"] and parts["train"]
    assert not {s.group for s in parts["test"]} & {s.group for s in parts["train"]}


def test_more_rows_move_no_row_and_the_seed_moves_them() -> None:
    samples = [sample(f"text {index}") for index in range(200)]
    before = {s.id for s in split(samples[:100], SETTINGS)["test"]}
    after = {s.id for s in split(samples, SETTINGS)["test"]}
    assert before == after & {s.id for s in samples[:100]}
    assert {s.id for s in split(samples, Split(test=0.2, validation=0.1, seed=4))["test"]} != after


def test_wider_shares_contain_narrower_ones() -> None:
    samples = [sample(f"text {index}") for index in range(300)]
    narrow, wide = ({s.id for s in split(samples, Split(test=share))["test"]} for share in (0.1, 0.3))
    assert narrow < wide
