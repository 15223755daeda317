"""Samples to tokens: chats by the model's own template with exact loss masks, plain text, and texts for encoders."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeVar

from uplift.core.errors import DataError, Place
from uplift.core.values import Encoded, Message, Sample
from uplift.data.template import ChatTemplate, PlainFormat, Segment, Slot, Structure
from uplift.data.tokens import Asked, Piece, SafeTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 1
"""Part of the fingerprint; raise it when the same sample would encode differently."""
LEAST_PROMPT = 4
"""A prompt is never cut below 1 / LEAST_PROMPT of the length limit to make room for an answer."""

GOES_ON = "goes_on"
"""Key of ``Sample.extras``: the text has not ended, so no end token is learned after it."""

BLOCK = 2**19
"""Characters that are tokenized together."""

Kept = TypeVar("Kept")
Kind = Literal["causal", "encoder"]
Cut = Literal["prompt", "answer", "text", "passage"]
Part = tuple[list[int], bool]
"""Ids of a segment and whether it is learned."""


class Encoder:
    """Turns samples into tokens for one model.

    Learned are the answers with their end-of-turn token, not the role headers; of plain text everything but the first
    token; of a text with a class label nothing (its head is trained). ``cuts`` remembers, by sample id, what was cut to
    ``max_length``: of a chat first the oldest exchanges, then the start of the question, and only then the end of the
    answer; of a text its end. A ``passage`` is a text that goes on in the next sample (see ``data.passages``).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, kind: Kind) -> None:
        self.tokenizer, self.max_length, self.kind = tokenizer, max_length, kind
        self.cuts: dict[str, frozenset[Cut]] = {}
        self._safe = SafeTokenizer(tokenizer)
        self._seen: dict[str, array[int]] = {}
        self._format = self._chat_format()

    def _chat_format(self) -> ChatTemplate | PlainFormat:
        if self.kind == "causal" and getattr(self.tokenizer, "chat_template", None):
            return ChatTemplate(self.tokenizer, self._safe)
        return PlainFormat(str(self.tokenizer.eos_token or ""))

    @property
    def template_fingerprint(self) -> str:
        """sha256 of all that decides how a sample becomes tokens: tokenizer, template, length limit and this code."""
        template = str(getattr(self.tokenizer, "chat_template", None) or "")
        parts = (VERSION, self.kind, self.max_length, template, self._safe.fingerprint)
        return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a text or an assistant turn."""
        names = {self.tokenizer.eos_token}
        if self.kind == "causal":
            names.add(self._format.turn_end)
        return frozenset(self._safe.id_of(name) for name in names if isinstance(name, str) and name)

    @property
    def room(self) -> int:
        """Tokens of plain text that fit beside the tokens that begin and end it."""
        return self.max_length - len(self._safe.lead) - len(self._safe.tail) - 1

    def token_spans(self, texts: Sequence[str], most: int) -> Iterator[list[tuple[int, int]] | None]:
        """For each text the characters (start, end) that each of its tokens stands for; None where there are at most ``most``.

        Such a text is soon encoded as it is: its tokens are kept until then.
        """
        for block in blocks(texts, len):
            with self._safe.at_once([Asked(text, continuing=True) for text in block]):
                for text in block:
                    if self._safe.content_length(text) > most:
                        yield self._safe.content_offsets(text)
                        continue
                    if (ids := self._safe.same_anywhere(text)) is not None:
                        self._seen[text] = array("I", ids)
                    yield None

    def encode_all(self, samples: Iterable[Sample]) -> list[Encoded]:
        """What ``encode`` gives for each sample. Many are tokenized together, on all cores."""
        found: list[Encoded] = []
        for block in blocks(samples, _size):
            with self._safe.at_once([each for sample in block for each in self._asked(sample)]):
                found += [self.encode(sample) for sample in block]
        return found

    def _asked(self, sample: Sample) -> list[Asked]:
        """What will be tokenized first for a sample; nothing for one that is refused."""
        if not sample.messages:
            text = sample.text or ""
            return [] if text in self._seen else [Asked(text)]
        try:
            segments, lead = self._segments(sample.messages, sample)
        except DataError:
            return []
        runs = ["".join(piece.text for piece in _filled(segment, sample.messages)) for segment in segments]
        return [Asked(run, bool(lead) or index > 0, content=False) for index, run in enumerate(runs)]

    def encode(self, sample: Sample) -> Encoded:
        """Tokens and loss weights of a sample, at most ``max_length``. Raises DataError (template, tokenizer)."""
        if sample.messages:
            parts = self._chat_parts(sample)
            ids = [token for part, _ in parts for token in part]
            weights = [float(learned) for part, learned in parts for _ in part]
            last = len(weights) - weights[::-1].index(1.0) if 1.0 in weights else len(weights)
            # What the template writes after the last answer is never predicted and never seen by what is.
            ids, weights = ids[:last][: self.max_length], weights[:last][: self.max_length]
        else:
            goes_on = bool(sample.extras.get(GOES_ON))
            ids = self._text_ids(sample, end=self.kind == "causal" and sample.label is None and not goes_on)
            if goes_on:
                self.cuts[sample.id] = self.cuts.get(sample.id, frozenset()) | {"passage"}
            weights = [0.0 if sample.label is not None or self.kind == "encoder" else 1.0] * len(ids)
        if weights:
            weights[0] = 0.0
        return Encoded(sample.id, ids, weights, sample.label)

    def encode_prompt(self, sample: Sample) -> list[int]:
        """Tokens before the learned last answer, up to where the model answers; exactly the beginning of ``encode``.

        A sample that does not end with a learned answer is a question as it stands.
        """
        if not sample.messages:
            return self._text_ids(sample, end=False)
        parts = self._chat_parts(sample)
        if sample.messages[-1].learn:
            last = max(index for index, (_, learned) in enumerate(parts) if learned)
            parts = parts[:last]
        return [token for part, _ in parts for token in part][: self.max_length]

    # -- plain text ------------------------------------------------------------------------------------------------
    def _text_ids(self, sample: Sample, *, end: bool) -> list[int]:
        lead, tail = self._safe.lead, list(self._safe.tail)
        eos = self.tokenizer.eos_token_id
        if end and isinstance(eos, int) and tail[-1:] != [eos]:
            tail.append(eos)
        try:
            text = sample.text or ""
            seen = self._seen.pop(text, None)
            ids = seen.tolist() if seen is not None else self._safe.content(text, continuing=False, learned=True)
        except DataError as error:
            raise _at(error, sample) from error
        room = self.max_length - len(lead) - len(tail)
        if len(ids) > room:
            self.cuts[sample.id] = frozenset({"text"})
            # A text for a language model that is cut has not ended; an encoder's closing token stays.
            return [*lead, *ids][: self.max_length] if end else [*lead, *ids[: max(room, 0)], *tail][: self.max_length]
        return [*lead, *ids, *tail]

    # -- chats -----------------------------------------------------------------------------------------------------
    def _chat_parts(self, sample: Sample) -> list[Part]:
        if self.kind == "encoder":
            raise DataError("an encoder reads texts, not chats", where=_place(sample), fix="use `task.head: classifier`")
        try:
            parts = self._parts(sample.messages, sample)
            if _length(parts) <= self.max_length:
                return parts
            messages = self._shortened(self._without_long_past(sample), sample)
            parts = self._parts(messages, sample)
        except DataError as error:
            raise _at(error, sample) from error
        cuts: set[Cut] = {"prompt"} if messages != sample.messages else set()
        self.cuts[sample.id] = frozenset(cuts | {"answer"} if _length(parts) > self.max_length else cuts)
        return parts

    def _without_long_past(self, sample: Sample) -> tuple[Message, ...]:
        """Drop the oldest exchanges (from a user turn to the next) until the rest fits or is the last exchange."""
        messages = sample.messages
        while _length(self._parts(messages, sample)) > self.max_length:
            start = 1 if messages[0].role == "system" else 0
            later = [i for i, message in enumerate(messages) if i > start and message.role == "user"]
            learns = any(message.learn for message in messages)
            if not later or (learns and not any(message.learn for message in messages[later[0] :])):
                break
            messages = (*messages[:start], *messages[later[0] :])
        return messages

    def _shortened(self, messages: tuple[Message, ...], sample: Sample) -> tuple[Message, ...]:
        """Cut the start of questions, first to last, until the chat fits or they are down to their least share."""
        least = self.max_length // LEAST_PROMPT
        for index, message in enumerate(messages):
            if message.learn or message.role == "system":
                continue
            for _ in range(8):  # tokens near a cut can change, so the first cut may miss by a few
                excess = _length(self._parts(messages, sample)) - self.max_length
                spans = self._safe.content_offsets(messages[index].content)
                count = min(excess, len(spans) - least)
                if count <= 0:
                    break
                shorter = replace(message, content=messages[index].content[spans[count - 1][1] :])
                messages = (*messages[:index], shorter, *messages[index + 1 :])
        return messages

    def _parts(self, messages: Sequence[Message], sample: Sample) -> list[Part]:
        segments, parts = self._segments(messages, sample)
        for segment in segments:
            ids = self._safe.run(_filled(segment, messages), continuing=bool(parts))
            parts.append((ids, segment.learned))
        return parts

    def _segments(self, messages: Sequence[Message], sample: Sample) -> tuple[Sequence[Segment], list[Part]]:
        """The chat with slots for what is said, and the tokens that begin it."""
        structure: Structure = tuple((message.role, message.learn) for message in messages)
        generation = messages[-1].role != "assistant"
        if isinstance(self._format, PlainFormat):
            direct = sample.extras.get("join") == "direct"
            lead: list[Part] = [(list(self._safe.lead), False)] if self._safe.lead else []
            return self._format.skeleton(structure, generation=generation, direct=direct), lead
        return self._format.skeleton(structure, generation=generation), []


def blocks(items: Iterable[Kept], size: Callable[[Kept], int]) -> Iterator[list[Kept]]:
    """The items in order, some at a time: few enough for their tokens to be held in memory."""
    block: list[Kept] = []
    total = 0
    for item in items:
        block.append(item)
        total += size(item)
        if total >= BLOCK:
            yield block
            block, total = [], 0
    if block:
        yield block


def _size(sample: Sample) -> int:
    return len(sample.text or "") + sum(len(message.content) for message in sample.messages)


def _filled(segment: Segment, messages: Sequence[Message]) -> list[Piece]:
    pieces = []
    for piece in segment.pieces:
        if isinstance(piece, Slot):
            pieces.append(Piece(piece.fill(messages[piece.index].content), content=True, learned=segment.learned))
        else:
            pieces.append(Piece(piece))
    return pieces


def _length(parts: Sequence[Part]) -> int:
    """Tokens up to the end of the last learned part (all of them when nothing is learned)."""
    lengths = [len(ids) for ids, _ in parts]
    last = max((index for index, (_, learned) in enumerate(parts) if learned), default=len(parts) - 1)
    return sum(lengths[: last + 1])


def _place(sample: Sample) -> Place:
    return Place(sample.origin.file, sample.origin.line)


def _at(error: DataError, sample: Sample) -> DataError:
    """The same error with the sample's file and line."""
    return error if error.where else DataError(error.what, where=_place(sample), why=error.why, fix=error.fix)
