"""Training data step by step: which samples a step sees is a function of (seed, position), so a restart needs two integers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from uplift.core.technique import Technique
from uplift.core.values import Batch, Corpus, Encoded, Progress, Sample
from uplift.data.packing import pack, plan_steps, share_of_rank, split_micro
from uplift.data.sampling import Order
from uplift.learn.parallel import Parallel


class Feed:
    """Ordered, packed training data.

    ``size`` and ``tokens``: samples and tokens of one epoch; ``steps_per_epoch`` in file order (about right in any other).
    """

    def __init__(
        self, corpus: Corpus, encoded: Sequence[Encoded], techniques: Sequence[Technique], seed: int, batch_tokens: int
    ) -> None:
        self.encoded, self.seed, self.batch_tokens = encoded, seed, batch_tokens
        weighing = [t for t in techniques if type(t).weights is not Technique.weights]

        def weight(sample: Sample, fraction: float) -> float:
            product = 1.0
            for technique in weighing:
                product *= technique.weights(sample, Progress(fraction=fraction))
            return product

        self._order = Order(list(corpus), seed, weight if weighing else None)
        lengths = [len(item) for item in encoded]
        self.size, self.tokens = len(self._order), self._order.mean_epoch(lengths)
        self.steps_per_epoch = len(plan_steps([lengths[index] for index in self._order.shown(0)], batch_tokens))
        self._cached: tuple[tuple[int, float], list[list[int]]] | None = None

    def steps(self, epoch: int, planned: float) -> list[list[int]]:
        """The steps of one epoch as lists of sample indices; ``planned`` draws make up the whole run."""
        if self._cached is None or self._cached[0] != (epoch, planned):
            drawn = epoch * self.size
            order = self._order.epoch(epoch, lambda position: min(1.0, (drawn + position) / planned))
            lengths = [len(self.encoded[index]) for index in order]
            steps = [[order[i] for i in step] for step in plan_steps(lengths, self.batch_tokens)]
            self._cached = ((epoch, planned), steps)
        return self._cached[1]

    def micro_batches(self, indices: Sequence[int], micro_tokens: int, parallel: Parallel, progress: Progress) -> list[Batch]:
        """This process's share of a step as packed micro-batches, at least one (weightless when there is nothing to do)."""
        items = [self.encoded[index] for index in indices]
        own = share_of_rank(items, parallel.rank, parallel.world) if parallel.world > 1 else items
        if not own:
            empty = items[0]
            own = [Encoded(empty.id, empty.ids, [0.0] * len(empty), None)]
        parts = split_micro(own, micro_tokens)
        return [pack(part, device=parallel.device, progress=progress, seed=self.seed) for part in parts]


def fixed_batches(encoded: Sequence[Encoded], micro_tokens: int, most_tokens: int, device: torch.device) -> list[Batch]:
    """The first ``most_tokens`` of an evaluation set as packed batches, the same ones every time."""
    chosen: list[Encoded] = []
    for item in encoded:
        if chosen and sum(map(len, chosen)) + len(item) > most_tokens:
            break
        chosen.append(item)
    return [pack(part, device=device, progress=Progress(), seed=0) for part in split_micro(chosen, micro_tokens)]
