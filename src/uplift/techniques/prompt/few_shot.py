"""Few-shot prompting: shows the model solved examples before each question; no weight changes.

When: a first answer within minutes, few labelled rows, or a model too large to train.
When not: when hundreds of rows and a little training time are there (fine-tuning wins); small base models gain little from it.
Paper: Brown et al. 2020, Language Models are Few-Shot Learners; Zhao et al. 2021 on balance and order of the examples.
Cost: memory of a longer prompt; time of its tokens, shared by all questions through the prefix cache.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr

from uplift.core.capability import Capabilities
from uplift.core.technique import Technique
from uplift.core.values import Corpus, Effect, Message, Sample, derive_seed


def choose(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """``count`` different samples, taken from the labels in turn so that they are balanced, in random order."""
    rng = random.Random(derive_seed("few_shot", seed))
    by_label: dict[int | None, list[Sample]] = {}
    for sample in {sample.id: sample for sample in samples}.values():
        by_label.setdefault(sample.label, []).append(sample)
    piles = [by_label[label] for label in sorted(by_label, key=lambda label: -1 if label is None else label)]
    for pile in piles:
        rng.shuffle(pile)
    chosen: list[Sample] = []
    while len(chosen) < count and any(piles):
        chosen += [pile.pop() for pile in piles if pile and len(chosen) < count]
        chosen = chosen[:count]
    rng.shuffle(chosen)
    return chosen


def turns_of(sample: Sample) -> list[Message]:
    """A sample's question and answer as turns that are shown, not learned; its system turn is left out."""
    return [replace(message, learn=False) for message in sample.messages if message.role != "system"]


def with_demonstrations(sample: Sample, demonstrations: Sequence[Sample]) -> Sample:
    """The sample with the demonstrations' turns after its system turn and before its question."""
    system = [message for message in sample.messages[:1] if message.role == "system"]
    shown = [turn for demonstration in demonstrations for turn in turns_of(demonstration)]
    return sample.with_messages([*system, *shown, *sample.messages[len(system) :]])


class FewShot(Technique):
    """Puts the same ``k`` training examples before every question of the validation and test parts."""

    use: Literal["few_shot"] = "few_shot"
    k: Annotated[int, Field(ge=0, le=64)] = 4
    """Examples shown (0: off)."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Which examples, and in which order."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        needs=frozenset({"no_training", "prompt", "train_rows"}),
        mutates=frozenset({"prompt"}),
        exclusive=frozenset({"demonstrations"}),
    )
    off: ClassVar[Mapping[str, Any]] = {"k": 0}

    _prompts: int = PrivateAttr(0)
    _fewest: int = PrivateAttr(0)
    _shown: int = PrivateAttr(0)

    def samples(self, corpus: Corpus) -> Corpus:
        """Prefix the prompts of an evaluated part; the training part is only read."""
        if corpus.part == "train" or self.k == 0 or len(corpus) == 0:
            return corpus
        candidates = choose(list(corpus.reference or ()), self.k + 1, self.seed)
        return corpus.map(lambda sample: self._prompt(sample, candidates))

    def _prompt(self, sample: Sample, candidates: list[Sample]) -> Sample:
        """A sample never sees itself: its own row gives way to the spare one at the end."""
        shown = [candidate for candidate in candidates if candidate.id != sample.id][: self.k]
        result = with_demonstrations(sample, shown)
        count = len(shown) if len(result.messages) > len(sample.messages) else 0
        self._fewest = min(self._fewest, count) if self._prompts else count
        self._prompts, self._shown = self._prompts + 1, self._shown + count
        return result

    def state(self) -> dict[str, Any]:
        """The counters behind the proof."""
        return {"prompts": self._prompts, "fewest": self._fewest, "shown": self._shown}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the counters."""
        self._prompts, self._fewest, self._shown = state["prompts"], state["fewest"], state["shown"]

    def effect(self) -> Effect:
        """Mean examples per prompt; holds when every prompt shows at least one."""
        value = self._shown / max(1, self._prompts)
        return Effect(
            self.use, "every prompt shows examples", value, self._fewest > 0, f"{self._prompts} prompts, {self.k} asked for"
        )
