"""What must not matter does not matter: saving, looking, logging, cutting into micro-batches, memory that was filled before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.learn.engines import distance, losses, make_engine, same, weights

from uplift.core.values import derive_seed
from uplift.data.packing import plan_steps
from uplift.data.sampling import Order
from uplift.learn.engine import Engine
from uplift.learn.preflight import preflight

NOISY = [{"use": "neftune"}, {"use": "ema"}]
GENTLE = {"optimizer": {"eps": 1e-3}}
"""With a tiny eps Adam turns the last digits of a tiny gradient into a full step."""


def _trained(folder: Path, name: str, **settings: Any) -> Engine:
    train = {"steps": None, "epochs": 2.5, **settings.pop("train", {})}
    engine = make_engine(folder, name, train=train, config={"attention_dropout": 0.1}, techniques=NOISY, **settings)
    if settings.get("seed", 0) == 0 and name != "no-preflight":
        preflight(engine, None)
    engine.train()
    return engine


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Engine]:
    folder = tmp_path_factory.mktemp("determinism")
    return folder, _trained(folder, "plain")


CHANGES: dict[str, dict[str, Any]] = {
    "again": {},
    "save-1": {"train": {"save_every": 1}},
    "save-5": {"train": {"save_every": 5}},
    "save-7": {"train": {"save_every": 7, "keep": 5}},
    "look-1": {"train": {"evaluate_every": 1}},
    "look-auto": {"train": {"evaluate_every": None}},
    "no-validation": {"validation": 0},
    "more-validation": {"validation": 20},
    "no-preflight": {},
}


@pytest.mark.parametrize("name", list(CHANGES))
def test_the_weights_are_bit_equal_whatever_happens_around_the_loop(plain: tuple[Path, Engine], name: str) -> None:
    folder, wanted = plain
    torch.manual_seed(hash(name) % 2**31)  # what ran before in this process must not matter
    found = _trained(folder, name, **CHANGES[name])
    assert losses(found) == losses(wanted)
    assert losses(found, "samples_hash") == losses(wanted, "samples_hash")
    assert same(weights(found), weights(wanted))


def test_a_report_callback_changes_nothing(plain: tuple[Path, Engine]) -> None:
    folder, wanted = plain
    engine = make_engine(
        folder, "reported", train={"steps": None, "epochs": 2.5}, config={"attention_dropout": 0.1}, techniques=NOISY
    )
    seen: list[int] = []
    engine.report = lambda progress, metrics: (seen.append(progress.step), torch.rand(3))  # type: ignore[assignment, return-value]
    engine.train()
    assert len(seen) == len(losses(wanted)) and same(weights(engine), weights(wanted))


@pytest.mark.parametrize("head", ["language", "class"])
@pytest.mark.parametrize("micro", [24, 48, 96])
def test_accumulation_keeps_the_order_and_the_weights(tmp_path: Path, head: str, micro: int) -> None:
    found = [
        make_engine(tmp_path, f"m{size}", head=head, micro=size, train={"steps": 12, **GENTLE}) for size in (10_000, micro)
    ]
    for engine in found:
        engine.train()
    whole, parts = found
    assert losses(parts, "samples_hash") == losses(whole, "samples_hash")
    assert losses(parts)[0] == pytest.approx(losses(whole)[0], rel=1e-6)
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)
    assert distance(weights(parts), weights(whole)) < 1e-5


def test_noise_of_a_sample_does_not_depend_on_its_micro_batch(tmp_path: Path) -> None:
    found = [
        make_engine(tmp_path, f"m{size}", micro=size, techniques=[{"use": "neftune"}], train=GENTLE) for size in (10_000, 24)
    ]
    for engine in found:
        engine.train()
    assert losses(found[1]) == pytest.approx(losses(found[0]), rel=1e-5)
    assert distance(weights(found[0]), weights(found[1])) < 1e-5


def test_the_seed_matters(plain: tuple[Path, Engine]) -> None:
    folder, wanted = plain
    other = _trained(folder, "seed-1", seed=1)
    assert losses(other, "samples_hash") != losses(wanted, "samples_hash")
    assert not same(weights(other), weights(wanted))


def test_the_logged_hash_of_samples_can_be_recomputed_offline(plain: tuple[Path, Engine]) -> None:
    _, engine = plain
    wanted, epoch = losses(engine, "samples_hash"), 0
    found: list[float] = []
    while len(found) < len(wanted):
        order = Order(list(engine.feed._order._samples), 0).epoch(epoch)
        items = [engine.feed.encoded[index] for index in order]
        for step in plan_steps([len(item) for item in items], engine.train_section.batch_tokens):
            found.append(float(derive_seed(*(items[position].id for position in step)) % 2**52))
        epoch += 1
    assert found[: len(wanted)] == wanted
