"""The pretraining part of the benchmark: shapes, what is learned, arithmetic, and equal losses in every system."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench.ours import encode
from bench.training import BARS, PEERS, run as run_benchmark, works_of
from bench.workload import TEN, TEN_SHORT, THIRTY, Shape, Work, build_model, model_flops

from bench import ours, peers

BLOCKS = Work("10M blocks", TEN, pretrain=True)


def parameters(shape: Shape) -> int:
    return shape.layers * (shape.layer_weights() + 2 * shape.hidden) + shape.hidden + shape.hidden * shape.vocabulary


@pytest.mark.parametrize(("shape", "least", "most"), [(TEN, 9.5e6, 10.5e6), (THIRTY, 28e6, 31e6)])
def test_the_shapes_have_their_sizes(shape: Shape, least: float, most: float) -> None:
    assert least < parameters(shape) < most
    built = build_model(Work("full", shape))
    assert sum(parameter.numel() for parameter in built.parameters()) == parameters(shape)


def test_blocks_are_full_and_short_documents_ragged() -> None:
    assert BLOCKS.blocks and {len(document) for document in BLOCKS.documents(10)} == {512}
    lengths = [len(document) for document in Work("10M short", TEN_SHORT, batch=32, pretrain=True).documents(20)]
    assert min(lengths) >= 16 and max(lengths) <= 256 and 65 < sum(lengths) / len(lengths) < 90


def test_every_token_but_the_first_is_learned_on_both_sides() -> None:
    assert BLOCKS.labels([5, 6, 7]) == [-100, 6, 7] and BLOCKS.learned([[5, 6, 7], [8, 9]]) == 3
    (item,) = encode(BLOCKS, [[5, 6, 7]])
    assert item.ids == [5, 6, 7] and item.weights == [0.0, 1.0, 1.0]


def test_flops_per_token_match_the_hand_count() -> None:
    documents = BLOCKS.documents(5)
    layers, head, attention = 6 * 6 * TEN.layer_weights(), 6 * 320 * 8192 * 511 / 512, 6 * 6 * 320 * 512
    assert model_flops(BLOCKS, documents) / (512 * len(documents)) == pytest.approx(layers + head + attention, rel=1e-9)


def test_each_pretraining_work_has_its_peers_and_bars() -> None:
    works = {work.name: work for work in works_of("pretrain", False, 1, 1)}
    assert list(works) == ["10M blocks", "30M blocks", "10M short"]
    named = {name: [peer.name for peer in PEERS if peer.kind in BARS[name] and peer.fits(work)] for name, work in works.items()}
    assert named["10M blocks"] == ["transformers Trainer", "loop, one document a forward", "loop, all blocks in a forward"]
    assert "TRL packing=True" in named["10M short"] and "loop, grouped by length" in named["10M short"]


class Turns:
    """Stands for the gate of a worker process: so many steps, then no more."""

    def __init__(self, steps: int) -> None:
        self.numbers: list[int | None] = [*range(steps), None]
        self.ended: list[tuple[int, float]] = []

    def begin(self) -> int | None:
        return self.numbers.pop(0)

    def end(self, tokens: int, loss: float) -> None:
        self.ended.append((tokens, loss))


def taken(train: Callable[[Work, Any], None], work: Work) -> list[tuple[int, float]]:
    """Tokens and loss of each step of one system."""
    turns = Turns(3)
    with contextlib.suppress(EOFError):
        train(work, turns)
    return turns.ended


@pytest.mark.parametrize("name", ["10M blocks", "10M short"])
def test_every_system_takes_the_same_steps(name: str) -> None:
    work = next(work for work in works_of("pretrain", True, 1, 1) if work.name == name)
    own = taken(ours.train, work)
    assert len(own) == 3 and own[0][0] == sum(map(len, work.step(0)))
    same = [peer for peer in PEERS if peer.fits(work) and peer.same_loss and peer.kind in BARS[name]]
    assert len(same) >= 2
    for peer in same:
        found = taken(peer.train, work)
        assert [tokens for tokens, _ in found] == [tokens for tokens, _ in own], peer.name
        assert found[0][1] == pytest.approx(own[0][1], rel=1e-5), peer.name
        assert [loss for _, loss in found] == pytest.approx([loss for _, loss in own], rel=1e-3), peer.name


def test_a_live_teacher_teaches_the_same_in_both_systems() -> None:
    (work,) = works_of("distill", True, 2, 1)
    assert (work.warmup, work.turns) == (2, 4), "the second time over the same documents is what counts"
    own, loop = taken(ours.train_live, work), taken(peers.train_taught, work)
    assert [tokens for tokens, _ in own] == [tokens for tokens, _ in loop]
    assert [loss for _, loss in own] == pytest.approx([loss for _, loss in loop], rel=1e-4)
    assert [tokens for tokens, _ in taken(ours.train, work)] == [tokens for tokens, _ in own]


@pytest.mark.slow
def test_the_pretraining_benchmark_runs(tmp_path: Path) -> None:
    outcome = run_benchmark(only="pretrain", counted=1, threads=1, tiny=True, path=tmp_path / "record.json")
    assert not outcome.failures and len(outcome.pairs) == 3 + 3 + 4
    for pair in outcome.pairs:
        assert pair.speed > 0 and (pair.difference is None or pair.difference < 1e-5)
