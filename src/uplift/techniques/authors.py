"""Who writes text for techniques: a language model here, one behind an address, or one that translates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from uplift.core.errors import RecipeError
from uplift.core.model_section import Model
from uplift.core.values import Generation, Message, Origin, Sample
from uplift.data.chat import Encoder
from uplift.learn.rollout import rollout
from uplift.learn.translation import Translator
from uplift.model.endpoint import Endpoint
from uplift.model.identity import hash_of_files
from uplift.model.language_model import LanguageModel, context_of
from uplift.model.opening import asked_kind, locate
from uplift.techniques.teacher import open_teacher

BATCH = 16
LEAST_QUESTION = 16
LONGEST = 4096
"""Tokens of question and answer together that are ever kept."""


class Author(Protocol):
    """Writes an answer to each question: a function of the question and its seed."""

    def write(
        self, questions: Sequence[str], seeds: Sequence[int], max_new_tokens: int, temperature: float
    ) -> list[Generation]:
        """The answers in the order of the questions; ``temperature`` 0: the likeliest words."""


@dataclass(frozen=True)
class LocalAuthor:
    """A causal language model; questions become turns by its own chat template where it has one."""

    model: LanguageModel

    def write(
        self, questions: Sequence[str], seeds: Sequence[int], max_new_tokens: int, temperature: float
    ) -> list[Generation]:
        """See ``Author``. Raises RecipeError when answers of this length do not fit into the model."""
        room = min(context_of(self.model), LONGEST) - max_new_tokens
        if room < LEAST_QUESTION:
            why = f"it reads {context_of(self.model)} tokens, and {max_new_tokens} are to be written"
            raise RecipeError("the model cannot write answers of this length", why=why, fix="lower `max_new_tokens`")
        encoder = Encoder(self.model.tokenizer, room, "causal")
        origin = Origin("question", 1)
        asked = [
            Sample(str(index), origin, messages=(Message("user", question),), extras={"join": "direct"})
            for index, question in enumerate(questions)
        ]
        ids = [encoder.encode_prompt(sample) for sample in asked]
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))  # neighbours of like length need little padding
        found: dict[int, Generation] = {}
        for begin in range(0, len(order), BATCH):
            part = order[begin : begin + BATCH]
            written = rollout(
                self.model,
                [ids[index] for index in part],
                ends=encoder.end_ids,
                max_new_tokens=max_new_tokens,
                seeds=[seeds[index] for index in part],
                temperature=temperature,
            )
            for index, tokens in zip(part, written, strict=True):
                ended = bool(tokens) and tokens[-1] in encoder.end_ids
                text = str(self.model.tokenizer.decode(tokens[: len(tokens) - ended], skip_special_tokens=True))
                found[index] = Generation(text, len(tokens), len(ids[index]), "stop" if ended else "length")
        return [found[index] for index in range(len(questions))]


@dataclass(frozen=True)
class DistantAuthor:
    """A model behind an OpenAI-compatible address."""

    endpoint: Endpoint

    def write(
        self, questions: Sequence[str], seeds: Sequence[int], max_new_tokens: int, temperature: float
    ) -> list[Generation]:
        """See ``Author``; as far as the server keeps to the seed. Raises ResourceError."""
        return [
            self.endpoint.answer(
                [Message("user", question)], max_new_tokens=max_new_tokens, temperature=temperature, seed=seed % 2**31
            )
            for question, seed in zip(questions, seeds, strict=True)
        ]


def own_author(model: Any, use: str) -> LocalAuthor:
    """The recipe's own model as an author. Raises RecipeError for one that cannot write, or has learned nothing yet."""
    if model.kind != "causal" or model.head_kind != "language" or model.untrained:
        why = "it has learned nothing yet" if model.untrained else "it classifies and has no words"
        raise RecipeError(f"the model of this recipe cannot write for `{use}`", why=why, fix="name one that can: `model: ...`")
    return LocalAuthor(model)


def named_author(spec: Model, base_dir: Path, device: torch.device) -> Author:
    """The author that a recipe names: a translation model, or a causal language model. Raises ModelError, ResourceError."""
    if asked_kind(spec, base_dir) == "translating":
        return Translator(spec, base_dir, device)
    return LocalAuthor(open_teacher(spec, "language", base_dir, device))


def facts_of(spec: Model | None, own: Any, base_dir: Path) -> Mapping[str, str]:
    """What names an author by its weights, without opening them."""
    if spec is None:
        return dict(own.identity)
    located = locate(spec, base_dir)
    return {"model": located.name, "weights_sha256": hash_of_files(located.weights)}
