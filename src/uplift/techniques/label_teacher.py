"""What any model says of the labels of a text, asked once for every training sample before training begins.

So a teacher may have another tokenizer than its student, and may be of another kind: a classifier of the same labels, or a
language model that is asked in words. Shapes: R samples, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from uplift.core.errors import RecipeError
from uplift.core.recipe import ClassifyTask
from uplift.core.values import Message, Sample
from uplift.data.chat import Encoder
from uplift.data.formats import content_text, question
from uplift.learn.scoring import prompted, score_classes, score_labels
from uplift.model.language_model import LanguageModel

BATCH_TOKENS = 4096


def label_log_probabilities(
    teacher: LanguageModel, samples: Sequence[Sample], labels: Sequence[str], prompt: str, max_length: int
) -> Tensor:
    """(R, C) ln p of each label, by the teacher's classification head or, with a language head, by asking ``prompt``.

    Raises RecipeError when the teacher classifies into other labels, DataError when a label cannot be asked for.
    """
    encoder = Encoder(teacher.tokenizer, max_length, teacher.kind)
    if teacher.head_kind == "class":
        places = _places(teacher, labels)
        texts = [Sample(sample.id, sample.origin, text=content_text(sample), label=sample.label) for sample in samples]
        scores = score_classes(teacher, encoder.encode_all(texts), BATCH_TOKENS)
        found = torch.from_numpy(scores.log_probabilities)[:, places]
        return found.log_softmax(-1).float()
    task = ClassifyTask(prompt=prompt)
    asked = [_asked(sample, task, labels) for sample in samples]
    scores = score_labels(teacher, prompted(asked, labels, encoder), BATCH_TOKENS)
    return torch.from_numpy(scores.normalised()).clamp_min(1e-30).log().float()


def _asked(sample: Sample, task: ClassifyTask, labels: Sequence[str]) -> Sample:
    """The sample as a question; any label will do as its answer."""
    turns = (Message("user", question(content_text(sample), task, labels)), Message("assistant", labels[0], learn=True))
    return Sample(sample.id, sample.origin, messages=turns)


def _places(teacher: LanguageModel, labels: Sequence[str]) -> list[int]:
    """Where the student's labels stand among the teacher's."""
    fresh = [note for note in teacher.notes if note.startswith("new classification head")]
    if fresh or set(teacher.labels) != set(labels):
        why = fresh[0] if fresh else f"its labels are {', '.join(teacher.labels)}; the task's are {', '.join(labels)}"
        fix = "train it on the same labels first, or ask a language model in words (`ask: words`)"
        raise RecipeError("the teacher of `distill` does not know the task's labels", why=why, fix=fix)
    return [teacher.labels.index(label) for label in labels]
