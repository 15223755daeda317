"""From encoded samples to micro-batches: whole samples laid end to end in one row, no padding, no attention across samples.

T tokens of a row, N samples of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from uplift.core.values import Batch, Encoded, Progress, derive_seed

NO_TARGET = -100
"""Target and label value that no loss counts (the convention of ``torch.nn.functional.cross_entropy``)."""


def plan_steps(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Cut samples in their given order into steps of at most ``batch_tokens`` tokens; returns positions, in order.

    A sample longer than ``batch_tokens`` is a step of its own: samples are never cut here and never reordered.
    """
    steps: list[list[int]] = []
    filled = 0
    for position, length in enumerate(lengths):
        if not steps or filled + length > batch_tokens:
            steps.append([])
            filled = 0
        steps[-1].append(position)
        filled += length
    return steps


def split_micro(items: Sequence[Encoded], micro_tokens: int) -> list[list[Encoded]]:
    """Cut one step into micro-batches of at most ``micro_tokens`` tokens, in order, whole samples (a longer one alone)."""
    plan = plan_steps([len(item) for item in items], micro_tokens)
    return [[items[position] for position in positions] for positions in plan]


def share_of_rank(items: Sequence[Encoded], rank: int, world: int) -> list[Encoded]:
    """The part of a step that process ``rank`` of ``world`` computes; the parts are disjoint and cover the step.

    Longest first to the least loaded process (Graham 1969), so token counts differ little; the order of the step is kept
    within a part. A part is empty when there are fewer samples than processes.
    """
    loads = [0] * world
    mine: list[int] = []
    for position in sorted(range(len(items)), key=lambda i: (-len(items[i]), i)):
        lightest = loads.index(min(loads))
        loads[lightest] += len(items[position])
        if lightest == rank:
            mine.append(position)
    return [items[position] for position in sorted(mine)]


def pack(encoded: Sequence[Encoded], *, device: torch.device | str, progress: Progress, seed: int) -> Batch:
    """One packed micro-batch. Targets and their weights are shifted inside each sample: its last token predicts nothing.

    Raises ValueError for an empty list, an empty sample, or weights that do not align with the ids.
    """
    if not encoded or any(len(item.ids) == 0 or len(item.weights) != len(item.ids) for item in encoded):
        raise ValueError("pack needs samples of at least one token, with one weight per token")
    lengths = np.array([len(item.ids) for item in encoded])
    ids = np.concatenate([np.asarray(item.ids, dtype=np.int64) for item in encoded])
    own_weights = np.concatenate([np.asarray(item.weights, dtype=np.float32) for item in encoded])
    ends = np.cumsum(lengths) - 1
    targets, weights = np.roll(ids, -1), np.roll(own_weights, -1)
    targets[ends], weights[ends] = NO_TARGET, 0.0
    positions = np.arange(len(ids)) - np.repeat(ends + 1 - lengths, lengths)
    labels = [NO_TARGET if item.label is None else item.label for item in encoded]
    return Batch(
        ids=_row(ids, device),
        positions=_row(positions, device),
        targets=_row(targets, device),
        weights=_row(weights, device),
        lengths=tuple(lengths.tolist()),
        labels=torch.tensor(labels, dtype=torch.int64).to(device),
        sample_ids=tuple(item.id for item in encoded),
        counts={"tokens": float(weights.sum(dtype=np.float64)), "samples": float(sum(label != NO_TARGET for label in labels))},
        progress=progress,
        seed=seed,
    )


def _row(values: np.ndarray, device: torch.device | str) -> torch.Tensor:
    return torch.from_numpy(values)[None].to(device, non_blocking=True)


def sample_generator(batch: Batch, purpose: str, index: int) -> torch.Generator:
    """Randomness of sample ``index`` of a batch: a function of (seed, purpose, step, sample id) and of nothing else.

    So noise is the same however the step is cut into micro-batches or spread over processes. Lives on the batch's device.
    """
    generator = torch.Generator(device=batch.ids.device)
    return generator.manual_seed(derive_seed(batch.seed, purpose, batch.progress.step, batch.sample_ids[index]))
