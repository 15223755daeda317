"""A model under attack: what it makes of a row with another text, and of a row whose embeddings are shifted.

Only the row's own text is attacked: not the question around it, not the template, not what an adapter puts before it.
Shapes: N rows, C labels, T tokens of a packed line, S tokens of the attacked texts end to end, P their places in the line (each
label has its own copy of a row when labels are of several tokens), D embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uplift.core.errors import DataError
from uplift.core.recipe import ClassifyTask
from uplift.core.values import Batch, Encoded, Progress, Sample
from uplift.data.chat import Encoder
from uplift.data.packing import pack, plan_steps
from uplift.data.rewording import reworded
from uplift.evaluate.attacks import Answer
from uplift.evaluate.statistics import Floats
from uplift.evaluate.tasks import label_scores
from uplift.learn import scoring
from uplift.model.backbone import evaluating
from uplift.model.language_model import LanguageModel

PROBES = ("0", "X")
"""Two texts with no character in common: what all prompts share with theirs is not the text."""
GRADIENT_TOKENS = 1024
"""Tokens of a forward whose graph is kept."""


@dataclass(frozen=True)
class Target:
    """One row as the model sees it: its documents (one, or one for each label) and where its text stands in each."""

    id: str
    truth: int
    documents: tuple[Encoded, ...]
    span: tuple[int, int]
    answers: tuple[int, ...] = ()
    """The label words, where each is one token."""

    def __len__(self) -> int:
        return sum(len(document) for document in self.documents)


@dataclass(frozen=True)
class TextGradient:
    """Of one row's text: ids of its tokens (S), gradient (S, D) of the true label's lead by their embeddings, and the product
    of both (S), by which each token raises the lead to first order."""

    ids: list[int]
    gradient: Tensor
    own: Tensor


class Victim:
    """A model, its task and the way its rows become tokens. Everything is measured in eval mode; nothing is trained."""

    def __init__(self, model: LanguageModel, task: ClassifyTask, encoder: Encoder, batch_tokens: int) -> None:
        self.model, self.task, self.encoder, self.batch_tokens = model, task, encoder, batch_tokens

    # -- texts -------------------------------------------------------------------------------------------------------
    def with_text(self, sample: Sample, text: str) -> Sample:
        """The row with another text, prompt and label unchanged. Raises DataError when its prompt does not show its text."""
        made = reworded(sample, text, self.task, self.model.labels)
        if made is not None:
            return made
        raise DataError(
            "the prompt of a row does not show the row's text",
            where=str(sample.origin),
            why="an attack changes the text, and could not be seen",
            fix="leave out what rewrites the prompts, or remove `evaluate.robustness`",
        )

    def scores(self, samples: Sequence[Sample]) -> Floats:
        """Log-probability of every label for every row (N, C)."""
        return label_scores(self.model, samples, self.encoder, self.batch_tokens).log_probabilities

    def ask(self, samples: Sequence[Sample]) -> list[Answer]:
        """The true label's lead for every row, and whether it is the model's answer."""
        if not samples:
            return []
        scores, truth = self.scores(samples), np.array([sample.label for sample in samples])
        right = scores.argmax(1) == truth
        return [Answer(float(lead), bool(ok)) for lead, ok in zip(leads(scores, truth), right, strict=True)]

    # -- tokens ------------------------------------------------------------------------------------------------------
    def targets(self, samples: Sequence[Sample]) -> list[Target]:
        """The rows with the places of their texts."""
        if self.model.head_kind == "class":
            whole = [self.encoder.encode(sample) for sample in samples]
            return [
                Target(sample.id, int(sample.label or 0), (encoded,), self._span(sample, list(encoded.ids)))
                for sample, encoded in zip(samples, whole, strict=True)
            ]
        items = scoring.prompted(samples, self.model.labels, self.encoder)
        return [self._asked_target(sample, item) for sample, item in zip(samples, items, strict=True)]

    def _asked_target(self, sample: Sample, item: scoring.Prompted) -> Target:
        span, prompt = self._span(sample, list(item.prompt)), item.prompt
        if all(len(answer) == 1 for answer in item.answers):
            document = Encoded(item.id, prompt, [1.0] * len(prompt))
            return Target(item.id, int(sample.label or 0), (document,), span, tuple(answer[0] for answer in item.answers))
        documents = tuple(
            Encoded(item.id, (*prompt, *answer), [0.0] * len(prompt) + [1.0] * len(answer)) for answer in item.answers
        )
        return Target(item.id, int(sample.label or 0), documents, span)

    def _span(self, sample: Sample, ids: list[int]) -> tuple[int, int]:
        """First and last token (exclusive) of the text: what lies between what all prompts of this kind share."""
        others = [self.encoder.encode_prompt(self.with_text(sample, text)) for text in PROBES]
        begin = min(shared(ids, other) for other in others)
        end = min(shared(ids[::-1], other[::-1]) for other in others)
        return begin, max(begin, len(ids) - end)

    def shaken(self, targets: Sequence[Target]) -> Iterator[tuple[list[int], Shaken]]:
        """The targets in packed lines that fit into memory with their graphs, each with the indices of its targets."""
        for group in plan_steps([len(target) for target in targets], min(self.batch_tokens, GRADIENT_TOKENS)):
            yield group, Shaken(self.model, [targets[i] for i in group])

    def gradients(self, samples: Sequence[Sample]) -> list[TextGradient]:
        """How each row's lead depends on the tokens of its text."""
        targets = self.targets(samples)
        found: list[TextGradient] = []
        for group, shaken in self.shaken(targets):
            _, gradient_SD = shaken.scores_and_gradient(shaken.zeros())
            own_S = (gradient_SD * shaken.embeddings).sum(1)
            parts = zip(group, gradient_SD.split(shaken.lengths), own_S.split(shaken.lengths), strict=True)
            for i, gradient, own in parts:
                begin, end = targets[i].span
                found.append(TextGradient(list(targets[i].documents[0].ids)[begin:end], gradient, own))
        return found


class Shaken:
    """Rows packed into one line; their scores as a function of a shift (S, D) of their texts' embeddings."""

    def __init__(self, model: LanguageModel, targets: Sequence[Target]) -> None:
        self.model, self.targets = model, list(targets)
        self.lengths = tuple(target.span[1] - target.span[0] for target in targets)
        """Attacked tokens of each row; they sum to S."""
        documents = [document for target in targets for document in target.documents]
        self._batch = pack(documents, device=model.device, progress=Progress(), seed=0)
        with torch.no_grad():
            self._clean_1TD = model.embed(self._batch.ids)
        self._places_P, self._sources_P = (
            torch.tensor(each, dtype=torch.int64, device=model.device) for each in self._wiring()
        )
        self._truth_N = torch.tensor([target.truth for target in targets], device=model.device)

    def _wiring(self) -> tuple[list[int], list[int]]:
        """For each attacked token of each copy: its place in the line, and which of the S tokens it is."""
        places: list[int] = []
        sources: list[int] = []
        start = first = 0
        for target, size in zip(self.targets, self.lengths, strict=True):
            for document in target.documents:
                places += range(start + target.span[0], start + target.span[1])
                sources += range(first, first + size)
                start += len(document)
            first += size
        return places, sources

    @property
    def embeddings(self) -> Tensor:
        """(S, D) embeddings of the attacked tokens."""
        result = self.zeros()
        return result.index_copy(0, self._sources_P, self._clean_1TD[0, self._places_P])

    def zeros(self) -> Tensor:
        """No shift (S, D)."""
        return self._clean_1TD.new_zeros(sum(self.lengths), self._clean_1TD.shape[2])

    def scores(self, delta_SD: Tensor) -> Tensor:
        """(N, C) log-probabilities of the labels under the shift, with gradient if it has one."""
        with evaluating(self.model):
            embeddings = self._clean_1TD.index_add(1, self._places_P, delta_SD[self._sources_P][None])
            hidden = self.model.hidden(embeddings, self._batch.positions, self._batch.lengths)
            if self.model.head_kind == "class":
                return self.model.class_logits(hidden, self._batch.lengths).float().log_softmax(-1)
            return self._words_scores(hidden)

    def _words_scores(self, hidden: Tensor) -> Tensor:
        batch = self._batch
        if self.targets[0].answers:
            ends = torch.tensor(batch.lengths, device=hidden.device).cumsum(0) - 1
            words = torch.tensor([target.answers for target in self.targets], device=hidden.device)
            return self.model.logits(hidden[0, ends]).float().log_softmax(-1).gather(1, words)
        kept = torch.nonzero(batch.weights[0], as_tuple=True)[0]
        log_p = self.model.logits(hidden[0, kept]).float().log_softmax(-1).gather(1, batch.targets[0, kept, None])[:, 0]
        sums = log_p.new_zeros(len(batch.lengths)).index_add(0, self._owners(batch, kept), log_p)
        return sums.reshape(len(self.targets), -1)

    @staticmethod
    def _owners(batch: Batch, kept: Tensor) -> Tensor:
        lengths = torch.tensor(batch.lengths, device=kept.device)
        return torch.repeat_interleave(torch.arange(len(lengths), device=kept.device), lengths)[kept]

    def scores_and_gradient(self, delta_SD: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C) scores under the shift, and the gradient (S, D) of the sum of the true labels' leads.

        The lead, not the likelihood: its gradient does not vanish when the model is sure, so confidence alone is no defence.
        """
        with torch.enable_grad():
            delta_SD = delta_SD.detach().requires_grad_(True)
            scores = self.scores(delta_SD)
            true = scores.gather(1, self._truth_N[:, None])[:, 0]
            others = scores.scatter(1, self._truth_N[:, None], -torch.inf).amax(1)
            (gradient,) = torch.autograd.grad((true - others).sum(), delta_SD)
        return scores.detach(), gradient


def shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Leading tokens that two sequences have in common."""
    return next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))


def leads(scores: Floats, truth: NDArray[np.int64]) -> Floats:
    """True label's log-probability minus the largest of the others, of scores (N, C)."""
    rows = np.arange(len(scores))
    others = scores.copy()
    others[rows, truth] = -np.inf
    return np.asarray(scores[rows, truth] - others.max(1))


def tokens_of_words(
    spans: Sequence[tuple[int, int]], text_ids: Sequence[int], offsets: Sequence[tuple[int, int]], ids: Sequence[int]
) -> list[list[int]]:
    """For each word (its characters) the places of its tokens in ``ids``, the text as it stands in its prompt.

    ``text_ids`` with ``offsets`` are the same text alone; tokens at its edges, and those cut off, can differ from ``ids``.
    """
    blocks = SequenceMatcher(None, text_ids, ids, autojunk=False).get_matching_blocks() if offsets else []
    place = {block.a + i: block.b + i for block in blocks for i in range(block.size)}
    return [
        [place[token] for token, (left, right) in enumerate(offsets) if token in place and left < end and right > begin]
        for begin, end in spans
    ]
