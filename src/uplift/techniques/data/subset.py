"""Subset: trains on fewer rows, the same number of each label; a smaller subset is a part of every larger one.

When: to see how many labelled rows a method needs (`uplift study transfer` uses it); for a quick trial on a large data set.
When not: to train the model that is to be used; more rows are rarely worse.
Paper: Perlich, Provost and Simonoff 2003, Tree Induction vs. Logistic Regression: A Learning-Curve Analysis.
Cost: memory none; time of fewer rows an epoch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr

from uplift.core.capability import Capabilities
from uplift.core.errors import DataError
from uplift.core.technique import Technique
from uplift.core.values import Corpus, Effect, Sample, derive_seed


def balanced_order(samples: Sequence[Sample], seed: int) -> list[int]:
    """All indices in an order whose every beginning is balanced: counts of labels differ by one while none has run out.

    It depends on ``seed`` and the samples' ids, not on their places. The labels take turns, in an order drawn anew for
    each round; a label without rows is passed over. Rows without a label count as one label.
    """
    piles: dict[int, list[tuple[int, int]]] = {}
    seen: Counter[str] = Counter()
    for index, sample in enumerate(samples):
        draw = derive_seed("subset", seed, sample.id, seen[sample.id])  # equal rows are told apart by their number
        seen[sample.id] += 1
        piles.setdefault(-1 if sample.label is None else sample.label, []).append((draw, index))
    for pile in piles.values():
        pile.sort()
    turns = [
        (place, derive_seed("subset", seed, "turn", place, label), index)
        for label, pile in piles.items()
        for place, (_, index) in enumerate(pile)
    ]
    return [index for _, _, index in sorted(turns)]


class Subset(Technique):
    """Keeps ``rows`` training rows in the order of the data; validation and test stay whole."""

    use: Literal["subset"] = "subset"
    rows: Annotated[int, Field(ge=0, le=10**9)] = 16
    """Training rows to keep (0: off)."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Which rows."""

    capabilities: ClassVar[Capabilities] = Capabilities(needs=frozenset({"training"}), mutates=frozenset({"train_rows"}))
    off: ClassVar[Mapping[str, Any]] = {"rows": 0}

    _given: int = PrivateAttr(0)
    _kept: Counter[int | None] = PrivateAttr(default_factory=Counter)

    def samples(self, corpus: Corpus) -> Corpus:
        """The kept rows of the training part. Raises DataError when there are fewer than asked for."""
        if corpus.part != "train" or self.rows == 0:
            return corpus
        every = list(corpus)
        if self.rows > len(every):
            raise DataError(
                f"`subset` asks for {self.rows:,} rows, and there are {len(every):,} to train on",
                where="techniques.subset.rows",
                fix=f"ask for at most {len(every):,}",
            )
        chosen = [every[index] for index in sorted(balanced_order(every, self.seed)[: self.rows])]
        self._given, self._kept = len(every), Counter(sample.label for sample in chosen)
        return Corpus(chosen, corpus.part, corpus.reference)

    def effect(self) -> Effect:
        """Share of the rows that were kept; holds when it is the number asked for, and rows were left out."""
        kept = self._kept.total()
        fewest, most = (min(self._kept.values()), max(self._kept.values())) if kept else (0, 0)
        detail = f"{kept:,} of {self._given:,} rows, {fewest:,} to {most:,} of each label"
        passed = 0 < kept == self.rows < self._given
        return Effect(self.use, "training saw fewer rows", kept / max(1, self._given), passed, detail)
