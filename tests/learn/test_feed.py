"""Which samples a step sees, and how they are cut for processes and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from tests.learn.engines import token_samples

from uplift.core.technique import Technique
from uplift.core.values import Corpus, Encoded, Origin, Progress, Sample
from uplift.learn.feed import Feed, fixed_batches
from uplift.learn.parallel import Parallel

CPU = torch.device("cpu")


class ShortFirst(Technique):
    """Draws samples of up to 15 letters first, the others later."""

    use: Literal["short_first"] = "short_first"

    def weights(self, sample: Sample, progress: Progress) -> float:
        return 1.0 if progress.fraction >= 0.5 or len(sample.text or "") <= 15 else 0.0


def _feed(samples: list[Encoded], batch_tokens: int = 100, seed: int = 0, techniques: tuple = ()) -> Feed:  # type: ignore[type-arg]
    rows = [Sample(item.id, Origin("made", number), text="x" * len(item)) for number, item in enumerate(samples)]
    return Feed(Corpus(rows, "train"), samples, techniques, seed, batch_tokens)


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_every_epoch_holds_every_sample_once_within_the_token_limit(epoch: int) -> None:
    samples = token_samples(50)
    steps = _feed(samples).steps(epoch, planned=300)
    assert sorted(index for step in steps for index in step) == list(range(50))
    assert all(sum(len(samples[index]) for index in step) <= 100 for step in steps)


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    samples = token_samples(50)
    assert _feed(samples).steps(3, 300) == _feed(samples).steps(3, 300)
    assert _feed(samples).steps(3, 300) != _feed(samples).steps(4, 300)
    assert _feed(samples).steps(3, 300) != _feed(samples, seed=1).steps(3, 300)


def test_asking_for_one_epoch_does_not_change_another() -> None:
    feed = _feed(token_samples(50))
    first = feed.steps(0, 300)
    feed.steps(1, 300)
    assert feed.steps(0, 300) == first


def test_weights_of_a_technique_put_short_samples_first() -> None:
    samples = token_samples(64, shortest=3, longest=40)
    steps = _feed(samples, techniques=(ShortFirst(),)).steps(0, planned=64)
    lengths = [len(samples[index]) for step in steps for index in step]
    plain = [len(samples[index]) for step in _feed(samples).steps(0, planned=64) for index in step]
    assert sum(lengths[:16]) < 0.7 * sum(lengths[-16:]) and sum(lengths[:16]) < sum(plain[:16])
    assert sorted(lengths) == sorted(plain)


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_processes_share_a_step_without_loss_or_overlap(world: int) -> None:
    samples = token_samples(12)
    feed, seen, tokens = _feed(samples), [], []
    for rank in range(world):
        batches = feed.micro_batches(range(12), 10_000, Parallel(CPU, rank, world), Progress())
        seen += [name for batch in batches for name in batch.sample_ids]
        tokens.append(sum(batch.counts["tokens"] for batch in batches))
    assert sorted(seen) == sorted(item.id for item in samples)
    assert sum(tokens) == pytest.approx(sum(sum(item.weights) for item in samples))


def test_a_process_without_samples_gets_one_that_weighs_nothing() -> None:
    feed = _feed(token_samples(2))
    batches = [feed.micro_batches([0, 1], 10_000, Parallel(CPU, rank, 3), Progress()) for rank in range(3)]
    empty = [part for part in batches if part[0].counts == {"tokens": 0.0, "samples": 0.0}]
    assert len(empty) == 1 and len(empty[0]) == 1 and not empty[0][0].weights.any()


def test_micro_batches_hold_whole_samples_up_to_the_limit() -> None:
    samples = token_samples(12)
    batches = _feed(samples).micro_batches(range(12), 40, Parallel(CPU), Progress(step=3))
    assert all(sum(batch.lengths) <= 40 for batch in batches) and len(batches) > 3
    assert [name for batch in batches for name in batch.sample_ids] == [item.id for item in samples]
    assert all(batch.progress.step == 3 for batch in batches)


def test_evaluation_batches_are_the_first_tokens_and_never_none() -> None:
    samples = token_samples(30)
    batches = fixed_batches(samples, 64, 100, CPU)
    names = [name for batch in batches for name in batch.sample_ids]
    assert names == [item.id for item in samples[: len(names)]]
    assert sum(sum(batch.lengths) for batch in batches) <= 100
    assert sum(len(batch.lengths) for batch in fixed_batches(samples, 64, 1, CPU)) == 1


def test_the_number_of_steps_in_an_epoch_is_foretold(tmp_path: Path) -> None:
    feed = _feed(token_samples(50))
    assert feed.steps_per_epoch == pytest.approx(len(feed.steps(0, 300)), rel=0.15)
