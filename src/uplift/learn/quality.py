"""The `quality` step of `data.prepare`: how hard a language model finds each text, or the probability of a class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from uplift.core.errors import RecipeError
from uplift.core.prepare_section import Quality
from uplift.core.values import Origin, Sample
from uplift.data.chat import Encoder
from uplift.data.clean.step import CleaningStep, Verdict, dropped
from uplift.learn.parallel import pick_device
from uplift.learn.scoring import score_classes, score_tokens
from uplift.model.language_model import LanguageModel, context_of
from uplift.model.opening import HeadKind, model_kind, open_model, resolve_model

MAX_LENGTH = 1024
"""Tokens of a text that the model reads; the rest of a longer one is not judged."""
BATCH_TOKENS = 4096


class QualityFilter(CleaningStep):
    """Drops texts under the rules ``too_low`` and ``too_high``, by a score of each text alone.

    Without ``label`` the score is the text's mean negative log-likelihood in nats per byte (the log of its perplexity per byte,
    which unlike that per token compares across tokenizers). A text of one token has none and is never dropped. With ``label``
    it is the probability of that class. All texts are scored, in batches, before any is judged.
    """

    looks_at_all: ClassVar[bool] = True

    def __init__(self, section: Quality, model: LanguageModel) -> None:
        self._section, self._model = section, model
        self._encoder = Encoder(model.tokenizer, min(MAX_LENGTH, context_of(model)), model.kind)
        self._scores: NDArray[np.float64] = np.empty(0)

    def sketch(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The scores of a chunk of texts."""
        if not texts:
            return np.empty(0)
        label = None if self._section.label is None else self._model.labels.index(self._section.label)
        samples = [Sample(str(i), Origin("", 0), text=text, label=label) for i, text in enumerate(texts)]
        encoded = self._encoder.encode_all(samples)
        if label is not None:
            return np.asarray(score_classes(self._model, encoded, BATCH_TOKENS).normalised()[:, label])
        scored = score_tokens(self._model, encoded, BATCH_TOKENS)
        return np.divide(scored.nll, scored.bytes, out=np.full(len(texts), np.nan), where=scored.bytes > 0)

    def settle(self, sketches: Iterable[NDArray[np.float64]]) -> None:
        """Keep the scores."""
        self._scores = np.concatenate([np.empty(0), *sketches])

    def judge(self, row: int, text: str) -> Verdict:
        """Whether the score lies within the limits."""
        score, low, high = float(self._scores[row]), self._section.least, self._section.most
        told = f"p({self._section.label}) {score:.4g}" if self._section.label else f"{score:.4g} nats per byte"
        if low is not None and score < low:
            return dropped("too_low", f"{told}, below {low:g}")
        if high is not None and score > high:
            return dropped("too_high", f"{told}, above {high:g}")
        return Verdict(text)


def quality_step(section: Quality, base_dir: Path) -> QualityFilter:
    """The step with its model opened. Raises RecipeError when the model cannot give such a score, ModelError."""
    spec = resolve_model(section.model, base_dir)
    if section.label is None and model_kind(spec, base_dir) == "encoder":
        raise _refused("an encoder gives no perplexity", "name one of its classes in `label`, or use a causal model")
    head: HeadKind = "language" if section.label is None else "class"
    model = open_model(spec, head=head, base_dir=base_dir, device=pick_device("auto"), seed=0)
    if section.label is not None:
        if section.label not in model.labels:
            raise _refused(f"the model has no class `{section.label}`", f"name one of: {', '.join(model.labels)}")
        if any(note.startswith("new classification head") for note in model.notes):
            raise _refused("the model was never trained to tell classes apart", "use a classifier, or leave `label` out")
    return QualityFilter(section, model)


def _refused(what: str, fix: str) -> RecipeError:
    return RecipeError(what, where="data.prepare", fix=fix)
