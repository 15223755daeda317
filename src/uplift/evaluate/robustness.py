"""How many right answers survive attacks: on the words of a text within a budget of queries, and on its embeddings.

Rows that the model has wrong are not attacked: they count as not robust. N rows, W words, D embedding width.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uplift.core import report
from uplift.core.recipe import Attack, ClassifyTask, Robustness
from uplift.core.values import Sample, derive_seed
from uplift.data.chat import Encoder
from uplift.data.formats import content_text
from uplift.data.wordnet import synonyms
from uplift.data.words import OPTIONS, swaps, typos
from uplift.evaluate.attacks import Answer, Found, Limits, Options, Search, Words, search
from uplift.evaluate.embedding_attack import Pushed, push
from uplift.evaluate.statistics import wilson_interval
from uplift.evaluate.tasks import labels_of, to_interval
from uplift.evaluate.victim import Target, TextGradient, Victim, tokens_of_words
from uplift.model.language_model import LanguageModel
from uplift.model.neighbours import Neighbours

POOL = 50
"""Nearest words among which a gradient chooses."""
EXAMPLES = 3
"""Attacked texts shown for each attack."""

Misleading = Mapping[Attack, Sequence[str | None]]
"""Attack -> for each row the text that made a model wrong, None where there is none."""


def measure_robustness(
    model: LanguageModel,
    samples: Sequence[Sample],
    task: ClassifyTask,
    encoder: Encoder,
    settings: Robustness,
    *,
    seed: int,
    batch_tokens: int,
    misleading: Misleading | None = None,
) -> report.Robustness:
    """Attack ``model`` on ``samples``. ``misleading``: texts that made another model wrong, of the same rows in this order.

    Everything random is drawn from (``seed``, sample id, attack). Raises DataError for a row without label, or whose prompt
    does not show its text.
    """
    started = time.perf_counter()
    assault = Assault(Victim(model, task, encoder, batch_tokens), list(samples), settings, seed)
    attacks = []
    for attack in settings.attacks:
        if attack == "embedding":
            attacks += [each for eps in settings.eps for each in assault.embeddings(eps)]
        else:
            attacks.append(assault.report_texts(attack, assault.texts(attack), (misleading or {}).get(attack)))
    return report.Robustness(
        rows=len(samples),
        queries=settings.queries,
        similarity=settings.similarity,
        clean=_share(assault.right),
        attacks=tuple(attacks),
        seconds=time.perf_counter() - started,
    )


def misleading_texts(
    model: LanguageModel,
    samples: Sequence[Sample],
    task: ClassifyTask,
    encoder: Encoder,
    settings: Robustness,
    *,
    seed: int,
    batch_tokens: int,
) -> Misleading:
    """The texts that make ``model`` wrong, by attack and row; embeddings, which are the model's own, give none."""
    assault = Assault(Victim(model, task, encoder, batch_tokens), list(samples), settings, seed)
    return {
        attack: [found.text if found is not None and found.broken else None for found in assault.texts(attack)]
        for attack in settings.attacks
        if attack != "embedding"
    }


def beside_base(result: report.Robustness, base: report.Robustness) -> report.Robustness:
    """``result`` with the scores of the same attacks on the untouched model."""
    scores = {(each.attack, each.eps): each.result for each in base.attacks}
    attacks = (each.model_copy(update={"base": scores.get((each.attack, each.eps))}) for each in result.attacks)
    return result.model_copy(update={"base_clean": base.clean, "attacks": tuple(attacks)})


@dataclass
class Assault:
    """One model, its rows and what may be done to them. ``clean``: the model's answers to the rows as they are (N,)."""

    victim: Victim
    samples: list[Sample]
    settings: Robustness
    seed: int
    clean: list[Answer] = field(init=False)

    def __post_init__(self) -> None:
        labels_of(self.samples)
        self.clean = self.victim.ask(self.samples)
        self._near = Neighbours(self.victim.model)

    @property
    def right(self) -> NDArray[np.bool_]:
        """Rows that the model has right (N,)."""
        return np.array([answer.right for answer in self.clean], dtype=bool)

    @property
    def attacked(self) -> list[int]:
        """Indices of the rows that are attacked: those that are right."""
        return [index for index, answer in enumerate(self.clean) if answer.right]

    # -- texts -------------------------------------------------------------------------------------------------------
    def texts(self, attack: Attack) -> list[Found | None]:
        """The end of each row's search; None for a row that was wrong before."""
        make = self._by_gradient() if attack == "gradient" else lambda index: self._search(index, self._options(index, attack))
        found = advance({index: make(index) for index in self.attacked}, self._ask)
        return [found.get(index) for index in range(len(self.samples))]

    def _ask(self, asked: list[tuple[int, str]]) -> list[Answer]:
        return self.victim.ask([self.victim.with_text(self.samples[index], text) for index, text in asked])

    def _search(self, index: int, options: Options, order: Sequence[int] | None = None, spent: int = 0) -> Search:
        text = content_text(self.samples[index])
        limits = Limits(self.settings.queries, self.settings.similarity, lambda texts: self._near.similar(text, texts))
        rng = random.Random(derive_seed(self.seed, self.samples[index].id, "order"))
        return search(text, self.clean[index], options, limits, rng, order, spent)

    def _options(self, index: int, attack: Attack) -> Options:
        sample, words = self.samples[index], Words(content_text(self.samples[index]))

        def rng(place: int) -> random.Random:
            return random.Random(derive_seed(self.seed, sample.id, attack, place))

        known: dict[Attack, Options] = {
            "typo": lambda place: typos(words[place], rng(place)),
            "swap": lambda place: swaps(words[place], rng(place)),
            "drop": lambda place: [""],
            "synonym": lambda place: self.synonyms[words[place]][:OPTIONS],
        }
        return known[attack]

    @cached_property
    def _words(self) -> list[str]:
        texts = [Words(content_text(self.samples[index])) for index in self.attacked]
        return list(dict.fromkeys(words[i] for words in texts for i in range(len(words))))

    @cached_property
    def nearest(self) -> dict[str, list[str]]:
        """Words that the model embeds alike, for each word of the rows."""
        return self._near.nearest(self._words, POOL)

    @cached_property
    def synonyms(self) -> dict[str, list[str]]:
        """Words that mean alike, for each word of the rows: of WordNet, or else as the model embeds them."""
        return self.nearest if self.settings.wordnet is None else synonyms(Path(self.settings.wordnet), self._words)

    def _by_gradient(self) -> Callable[[int], Search]:
        """Searches that try the swaps which lower the lead most to first order: where, and for which of the nearest words.

        Ebrahimi et al. 2018, HotFlip. The gradient is taken once, of the text as it is, and counts as one query.
        """
        gradients = self.victim.gradients([self.samples[index] for index in self.attacked])
        by_row = dict(zip(self.attacked, gradients, strict=True))

        def make(index: int) -> Search:
            best = self._best_swaps(content_text(self.samples[index]), by_row[index])
            order = sorted(best, key=lambda place: best[place][0][0])
            return self._search(index, lambda place: [word for _, word in best[place]], order, spent=1)

        return make

    def _best_swaps(self, text: str, gradient: TextGradient) -> dict[int, list[tuple[float, str]]]:
        """For each word that can be swapped its best replacements, each with the expected change of the lead, lowest first."""
        words, best = Words(text), {}
        tokens = tokens_of_words(words.spans, self._near.ids(text), self._near.offsets(text), gradient.ids)
        for place, places in enumerate(tokens):
            near = self.nearest[words[place]]
            if places and near:
                # As if the new word stood in the place of each of the old one's tokens.
                change_W = self._near.vectors(near) @ gradient.gradient[places].float().sum(0) - gradient.own[places].sum()
                best[place] = sorted(zip(change_W.tolist(), near, strict=True))[:OPTIONS]
        return best

    def report_texts(
        self, attack: Attack, found: Sequence[Found | None], misleading: Sequence[str | None] | None
    ) -> report.Attack:
        """What the searches of one attack came to, and what the texts that mislead another model do here."""
        ended = [each for each in found if each is not None]
        broken = np.array([each is not None and each.broken for each in found], dtype=bool)
        hits = [each for each in ended if each.broken]
        scores = report.AttackScores(
            robust=_share(self.right & ~broken),
            success=_share(broken[self.right]),
            queries=_mean([each.queries for each in ended]),
            changed=_mean([each.words.share_changed for each in hits]),
            similarity=min((each.similarity for each in hits), default=None),
        )
        if misleading is not None:
            scores = scores.model_copy(update=self._transfer(misleading))
        return report.Attack(attack=attack, result=scores, examples=self._examples(found))

    def _transfer(self, misleading: Sequence[str | None]) -> dict[str, object]:
        shown = [(index, text) for index, text in enumerate(misleading) if text is not None and self.right[index]]
        withstood = np.array([answer.right for answer in self._ask(shown)], dtype=bool)
        return {"transfer": _share(withstood), "transfer_rows": len(shown)}

    def _examples(self, found: Sequence[Found | None]) -> tuple[report.AttackExample, ...]:
        """The most similar of the misleading texts, with what the model says of them."""
        hits = [(index, each) for index, each in enumerate(found) if each is not None and each.broken]
        best = sorted(hits, key=lambda hit: -hit[1].similarity)[:EXAMPLES]
        if not best:
            return ()
        labels = self.victim.model.labels
        answers = self.victim.scores([self.victim.with_text(self.samples[index], each.text) for index, each in best]).argmax(1)
        return tuple(
            report.AttackExample(
                label=labels[self.samples[index].label or 0],
                predicted=labels[int(answer)],
                clean=content_text(self.samples[index]),
                attacked=each.text,
            )
            for (index, each), answer in zip(best, answers, strict=True)
        )

    # -- embeddings --------------------------------------------------------------------------------------------------
    @cached_property
    def _targets(self) -> list[Target]:
        return self.victim.targets([self.samples[index] for index in self.attacked])

    def embeddings(self, eps: float) -> list[report.Attack]:
        """Noise and gradient steps of one size."""
        pushed = push(self.victim, self._targets, eps, self.settings.steps, self.seed)
        return [self._report_embeddings(name, eps, each) for name, each in pushed.items()]

    def _report_embeddings(self, name: str, eps: float, pushed: Pushed) -> report.Attack:
        truth = np.array([self.samples[index].label for index in self.attacked], dtype=np.int64)
        broken = pushed.predicted != truth
        robust = self.right
        robust[self.attacked] = ~broken
        scores = report.AttackScores(robust=_share(robust), success=_share(broken), queries=_mean(list(pushed.queries)))
        return report.Attack(attack=name, eps=eps, result=scores)


def advance(searches: Mapping[int, Search], ask: Callable[[list[tuple[int, str]]], Sequence[Answer]]) -> dict[int, Found]:
    """Run searches side by side: ``ask`` gets the texts of all of them, each with its search's key. Returns how they ended."""
    found: dict[int, Found] = {}
    answers: dict[int, list[Answer] | None] = dict.fromkeys(searches)
    while answers:
        asked: dict[int, list[str]] = {}
        for key, answer in answers.items():
            try:
                # A generator is started by sending None.
                asked[key] = searches[key].send(answer)  # type: ignore[arg-type]
            except StopIteration as stop:
                found[key] = stop.value
        replies = iter(ask([(key, text) for key, texts in asked.items() for text in texts]))
        answers = {key: [next(replies) for _ in texts] for key, texts in asked.items()}
    return found


def _share(hits: NDArray[np.bool_]) -> report.Interval:
    """Share of hits with Wilson's interval; a null share of nothing."""
    return to_interval(wilson_interval(int(hits.sum()), len(hits)))


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None
