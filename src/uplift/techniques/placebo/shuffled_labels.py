"""Shuffled labels: a placebo. Gives the training rows each other's labels, so that nothing real is left to learn.

When: as an extra arm of a comparison; a method that still beats chance with shuffled labels measures a leak, not learning.
When not: in any model that is meant to be used.
Paper: Zhang et al. 2017, Understanding Deep Learning Requires Rethinking Generalization; Ojala and Garriga 2010 for the test.
Cost: memory one label per training row; time none.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr

from uplift.core.capability import Capabilities
from uplift.core.technique import Technique
from uplift.core.values import Corpus, Effect, Sample, derive_seed


def partners(count: int, share: float, seed: int) -> list[int]:
    """Whose label each row gets: a random permutation of the chosen ``share`` of the rows; the others keep their own."""
    rng = random.Random(derive_seed("shuffled_labels", seed))
    chosen = sorted(rng.sample(range(count), round(share * count)))
    givers = list(chosen)
    rng.shuffle(givers)
    result = list(range(count))
    for taker, giver in zip(chosen, givers, strict=True):
        result[taker] = giver
    return result


def with_label_of(sample: Sample, other: Sample) -> Sample:
    """``sample`` with the class index and the learned answer of ``other``; its question stays."""
    if not sample.messages:
        return replace(sample, label=other.label)
    answers = [message.content for message in other.messages if message.learn]
    messages = [replace(m, content=answers[-1]) if m.learn and answers else m for m in sample.messages]
    return replace(sample, label=other.label, messages=tuple(messages))


class ShuffledLabels(Technique):
    """Permutes labels (and label words) among the training rows; validation and test keep the truth."""

    use: Literal["shuffled_labels"] = "shuffled_labels"
    share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the rows that take part (0: off)."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Which permutation."""

    capabilities: ClassVar[Capabilities] = Capabilities(needs=frozenset({"training", "labels"}), mutates=frozenset({"labels"}))
    off: ClassVar[Mapping[str, Any]] = {"share": 0.0}

    _rows: int = PrivateAttr(0)
    _wrong: int = PrivateAttr(0)

    def samples(self, corpus: Corpus) -> Corpus:
        """The training part with permuted labels; other parts as they are."""
        if corpus.part != "train" or self.share == 0:
            return corpus
        true = list(corpus)
        givers = partners(len(true), self.share, self.seed)
        shuffled: Sequence[Sample] = [with_label_of(sample, true[giver]) for sample, giver in zip(true, givers, strict=True)]
        self._rows = len(true)
        self._wrong = sum(old.label != new.label for old, new in zip(true, shuffled, strict=True))
        return Corpus(shuffled, corpus.part, corpus.reference)

    def effect(self) -> Effect:
        """Share of training labels that differ from the truth; holds when there are any."""
        value = self._wrong / max(1, self._rows)
        return Effect(
            self.use, "training labels were wrong on purpose", value, self._wrong > 0, f"{self._wrong} of {self._rows} rows"
        )
