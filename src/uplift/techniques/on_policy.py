"""Training on the model's own answers: which samples it answers, what it writes, what a teacher says of every token of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from uplift.core.values import Batch, Encoded, derive_seed
from uplift.data.packing import pack
from uplift.learn.distillation import Live, Objective, distil
from uplift.learn.forward import ForwardPass
from uplift.learn.rollout import rollout
from uplift.model.language_model import LanguageModel

PURPOSE = "on_policy"


def drawn(batch: Batch, share: float) -> list[int]:
    """Places in the batch of the samples that the model answers itself: a function of (seed, step, sample id)."""
    numbers = (derive_seed(batch.seed, PURPOSE, batch.progress.step, identity) / 2**63 for identity in batch.sample_ids)
    return [place for place, number in enumerate(numbers) if number < share]


def own_answers(
    model: LanguageModel, batch: Batch, places: Sequence[int], ends: frozenset[int], max_new_tokens: int, draws: int = 1
) -> list[Encoded]:
    """Those samples with an answer of the model's own behind the question: all before the first trained token.

    ``draws`` answers to each, one behind the other; the first is the same however many there are.
    """
    ids, weights = batch.ids[0].tolist(), batch.weights[0].tolist()
    prompts, begin = {}, 0
    for place, length in enumerate(batch.lengths):
        if place in places:
            first = next(index for index in range(begin, begin + length) if weights[index] > 0)
            prompts[place] = ids[begin : first + 1]  # a weight stands where its token is predicted, one before it
        begin += length
    asked = [(place, draw) for place in prompts for draw in range(draws)]
    seeds = [
        derive_seed(batch.seed, PURPOSE, "answer", batch.progress.step, batch.sample_ids[place], *([draw] if draw else []))
        for place, draw in asked
    ]
    questions = [prompts[place] for place, _ in asked]
    answers = rollout(model, questions, ends=ends, max_new_tokens=max_new_tokens, seeds=seeds)
    return [
        Encoded(batch.sample_ids[place], [*prompt, *answer], [0.0] * len(prompt) + [1.0] * len(answer))
        for (place, _), prompt, answer in zip(asked, questions, answers, strict=True)
    ]


def divergence(
    model: LanguageModel,
    teachers: Sequence[LanguageModel],
    batch: Batch,
    written: Sequence[Encoded],
    weights: Sequence[float],
    objective: Objective,
) -> Tensor:
    """Sum over samples of ``weights`` times the mean divergence over the tokens that were written."""
    own = pack(written, device=batch.ids.device, progress=batch.progress, seed=batch.seed)
    forward = ForwardPass(model, own, model.embed(own.ids))
    taught = Live([forward.under(teacher).predictions for teacher in teachers])
    counts = torch.bincount(forward.owners, minlength=len(written))
    share_N = torch.tensor(weights, dtype=torch.float32, device=counts.device) / counts.clamp_min(1)
    return distil(forward.predictions, taught, share_N[forward.owners], objective).mixed
