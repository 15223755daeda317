"""Text from a causal model: batched, with a key/value cache, streamed, the same again for the same seed.

Shapes: B prompts of a batch (padded at the left), L tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from uplift.core.errors import UsageError
from uplift.core.values import Generation, Message, Origin, Sample, derive_seed
from uplift.data.chat import Encoder
from uplift.model.backbone import cache_of, evaluating
from uplift.model.language_model import LanguageModel, context_of

Prompt = str | Sequence[Message]
"""Text to continue as it stands, or turns to answer (rendered by the model's own chat template)."""
OnText = Callable[[int, str], None]
"""Called with (index of the prompt, new piece of its text) as soon as the piece is certain."""

UNFINISHED = "\ufffd"


def generate(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: Sequence[str] = (),
    on_text: OnText | None = None,
    batch_size: int = 8,
) -> list[Generation]:
    """Continue each prompt by at most ``max_new_tokens`` tokens; answers in the order of the prompts.

    ``temperature`` 0 takes the likeliest token each time; else samples among the likeliest tokens that hold ``top_p``
    together, the same ones for the same seed and batch size. A ``stop`` text ends an answer and is not part of it. Old turns
    of a chat are dropped when the model's context is full. Raises UsageError for a model without a language head, a text
    that leaves no room, or numbers out of range.
    """
    _check(model, max_new_tokens, temperature, top_p, batch_size, stop)
    room = context_of(model) - max_new_tokens
    encoder = Encoder(model.tokenizer, room, "causal")
    ids = [_encode(encoder, prompt, index) for index, prompt in enumerate(prompts)]
    settings = _settings(model, encoder, max_new_tokens, temperature, top_p)
    answers: dict[int, Generation] = {}
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))  # neighbours of like length need little padding
    for start in range(0, len(order), batch_size):
        group = order[start : start + batch_size]
        with _drawing(model.device, derive_seed(seed, "generate", start)):
            answers |= _answer(model, group, [ids[index] for index in group], settings, stop, on_text)
    return [answers[index] for index in range(len(ids))]


def _check(
    model: LanguageModel, max_new_tokens: int, temperature: float, top_p: float, batch_size: int, stop: Sequence[str]
) -> None:
    if model.kind != "causal" or model.head_kind != "language":
        raise UsageError("this model classifies and cannot write text", fix="use a causal model with its language head")
    if not (temperature >= 0 and 0 < top_p <= 1 and batch_size >= 1):
        raise UsageError(
            "sampling settings are out of range", fix="use temperature >= 0, 0 < top_p <= 1 and a batch of at least 1"
        )
    if not 1 <= max_new_tokens < context_of(model):
        raise UsageError(
            f"{max_new_tokens} new tokens do not fit", fix=f"ask for 1 to {context_of(model) - 1}, the model's context"
        )
    if any(not text for text in stop):
        raise UsageError("an empty stop text would stop at once", fix="leave it out")


def _encode(encoder: Encoder, prompt: Prompt, index: int) -> list[int]:
    content = prompt if isinstance(prompt, str) else "\x1f".join(f"{turn.role}:{turn.content}" for turn in prompt)
    identity = hashlib.sha256(content.encode(errors="replace")).hexdigest()[:16]
    origin = Origin("prompt", index + 1)
    if isinstance(prompt, str):
        sample = Sample(identity, origin, text=prompt)
    elif prompt:
        sample = Sample(identity, origin, messages=tuple(prompt))
    else:
        raise UsageError(f"prompt {index + 1} has no turns", fix="give at least a user turn")
    ids = encoder.encode_prompt(sample)
    if not sample.messages and identity in encoder.cuts:
        raise UsageError(
            f"prompt {index + 1} does not fit the model's context of {encoder.max_length} tokens",
            fix="shorten it, or ask for less",
        )
    return ids or _first_token(encoder)


def _first_token(encoder: Encoder) -> list[int]:
    """What an empty prompt starts from."""
    tokenizer = encoder.tokenizer
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if not isinstance(first, int):
        raise UsageError("the prompt is empty and the tokenizer has no token to begin with", fix="write a prompt")
    return [first]


def _settings(
    model: LanguageModel, encoder: Encoder, max_new_tokens: int, temperature: float, top_p: float
) -> GenerationConfig:
    """Everything said here, so that nothing is taken from a model's own sampling defaults."""
    saved = getattr(model.pretrained.generation_config, "eos_token_id", None)
    ends = set(encoder.end_ids) | set(saved if isinstance(saved, list) else [saved] if saved is not None else [])
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends) or None,
        pad_token_id=cast(Any, model.tokenizer).pad_token_id,
        repetition_penalty=1.0,
        num_beams=1,
        use_cache=True,
        **sampling,
    )


@contextmanager
def _drawing(device: torch.device, seed: int) -> Iterator[None]:
    """The global generators (transformers draws from them) seeded inside and put back after."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@torch.no_grad()
def _answer(
    model: LanguageModel,
    indices: Sequence[int],
    prompts: Sequence[list[int]],
    settings: GenerationConfig,
    stop: Sequence[str],
    on_text: OnText | None,
) -> dict[int, Generation]:
    """Answers of one batch by index of the prompt."""
    longest = max(map(len, prompts))
    pad = settings.pad_token_id or 0
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts], device=model.device)
    seen = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    # A virtual prompt is in the cache before the first token; the mask counts it, so positions do as well.
    virtual, seen = model.virtual_prefix(), torch.nn.functional.pad(seen, (model.virtual_length, 0), value=1)
    watcher = _Watcher(model, longest, indices, settings, tuple(stop), on_text)
    watchers = StoppingCriteriaList([watcher]) if stop or on_text else StoppingCriteriaList()
    with evaluating(model.pretrained):
        out = cast(Any, model.pretrained).generate(
            input_ids=ids,
            attention_mask=seen,
            generation_config=settings,
            stopping_criteria=watchers,
            past_key_values=cache_of(virtual, len(prompts)) if virtual is not None else None,
        )
    results = {}
    for row, index in enumerate(indices):
        written, ended = watcher.written(out[row, longest:].tolist())
        text, stopped = watcher.cut(watcher.decode(written))
        results[index] = Generation(text, len(written), len(prompts[row]), "stop" if ended or stopped else "length")
        watcher.finish(row, text)
    return results


@dataclass
class _Row:
    told: int = 0
    done: bool = False


@dataclass
class _Watcher(StoppingCriteria):  # type: ignore[misc]
    """Looks at the text after every token: ends rows at stop texts and tells new pieces."""

    model: LanguageModel
    start: int
    indices: Sequence[int]
    settings: GenerationConfig
    stop: tuple[str, ...]
    on_text: OnText | None
    rows: list[_Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rows = [_Row() for _ in self.indices]
        ends = self.settings.eos_token_id
        self.ends = frozenset(ends if isinstance(ends, list) else [])

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        """(B,) true where a row has ended."""
        for row, tokens in enumerate(input_ids[:, self.start :].tolist()):
            if not self.rows[row].done:
                written, ended = self.written(tokens)
                text, stopped = self.cut(self.decode(written))
                self.rows[row].done = stopped or ended
                if not self.rows[row].done:  # the whole is told at the end
                    self._tell(row, text[: self._certain(text)])
        return torch.tensor([row.done for row in self.rows], device=input_ids.device)

    def written(self, tokens: list[int]) -> tuple[list[int], bool]:
        """Tokens before the end token (and padding after it), and whether there was one."""
        end = next((place for place, token in enumerate(tokens) if token in self.ends), None)
        return (tokens, False) if end is None else (tokens[:end], True)

    def decode(self, tokens: list[int]) -> str:
        """Text without control tokens."""
        return str(self.model.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def cut(self, text: str) -> tuple[str, bool]:
        """The text before the first stop text, and whether there was one."""
        places = [place for place in (text.find(stop) for stop in self.stop) if place >= 0]
        return (text[: min(places)], True) if places else (text, False)

    def finish(self, row: int, text: str) -> None:
        """Tell what is left of a finished answer."""
        self._tell(row, text)

    def _certain(self, text: str) -> int:
        """Characters that further tokens cannot change: not half a character, not what may begin a stop text."""
        text = text.rstrip(UNFINISHED)
        held = max((length for stop in self.stop for length in range(1, len(stop)) if text.endswith(stop[:length])), default=0)
        return len(text) - held

    def _tell(self, row: int, text: str) -> None:
        told = self.rows[row].told
        if self.on_text is not None and len(text) > told:
            self.on_text(self.indices[row], text[told:])
            self.rows[row].told = len(text)
