"""Text to token ids such that content can never become control tokens, whatever it says.

A run of template text and content is tokenized as a whole, exactly as transformers would, and accepted when no control token
covers a character of content. Otherwise the pieces are tokenized apart, content with its special tokens switched off.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from tokenizers import Encoding, Tokenizer

from uplift.core.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANCHOR = "\n"
"""Text put before a continuation so that tokenizers that mark the start of a text do not mark it there."""


class Piece(NamedTuple):
    """Text of a run: written by the template, or content; ``learned`` content is an answer to train on."""

    text: str
    content: bool = False
    learned: bool = False


class Asked(NamedTuple):
    """A text that will be tokenized: content (its special tokens are no tokens), and whether other tokens stand before it."""

    text: str
    continuing: bool = False
    content: bool = True


@dataclass(frozen=True)
class _Encoding:
    """A part of a tokenizer's answer: from token ``skip`` on, characters counted from ``shift``."""

    whole: Encoding
    skip: int = 0
    shift: int = 0

    @cached_property
    def ids(self) -> list[int]:
        return list(self.whole.ids[self.skip :])

    @property
    def offsets(self) -> list[tuple[int, int]]:
        if not self.skip:
            return list(self.whole.offsets)
        return [(max(start - self.shift, 0), max(end - self.shift, 0)) for start, end in self.whole.offsets[self.skip :]]

    def span(self, index: int) -> tuple[int, int]:
        """Character span of one token, without listing all."""
        start, end = self.whole.token_to_chars(index + self.skip) or (0, 0)
        return max(start - self.shift, 0), max(end - self.shift, 0)


class SafeTokenizer:
    """A copy of a fast tokenizer (its settings shared with nobody) that knows control tokens from content.

    ``control``: ids of special tokens, never produced by content. ``guarded``: ids of other added tokens that the chat
    template writes (``<tool_call>``, ``<think>``): an answer may hold them, a question may not.
    Raises ModelError when the tokenizer is not a fast one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            fix = "use a model folder that holds `tokenizer.json`"
            raise ModelError("the tokenizer is not a fast one", why=f"it is {type(tokenizer).__name__}", fix=fix)
        saved = backend.to_str()
        self.fingerprint = hashlib.sha256(saved.encode()).hexdigest()
        self._whole, self._content = _copy(saved, special=True), _copy(saved, special=False)
        added = backend.get_added_tokens_decoder()
        special = frozenset(i for i, token in added.items() if token.special) | frozenset(tokenizer.all_special_ids)
        self.control = special - {_unknown_id(self._whole, saved)}
        template = str(getattr(tokenizer, "chat_template", None) or "")
        self.guarded = frozenset(
            i for i, token in added.items() if token.content.strip() and token.content in template and i not in self.control
        )
        self._suspects = self.control | self.guarded
        self.control_texts = tuple(sorted({str(backend.id_to_token(i)) for i in self.control}, key=len, reverse=True))
        self._anchor = self._whole.encode(ANCHOR, add_special_tokens=False).ids
        self._marks_start = self._has_start_mark()
        self.lead, self.tail = self._wrapping()
        self._ready: dict[tuple[bool, str], Encoding] = {}

    @contextmanager
    def at_once(self, asked: Sequence[Asked]) -> Iterator[None]:
        """Tokenizes many texts together, on all cores. Inside, what is asked for again is looked up: the same, only sooner."""
        for content in (True, False):
            texts = {self._anchored(each.text, each.continuing) for each in asked if each.content == content}
            whole = sorted(texts, key=len, reverse=True)  # a long one that comes last would keep the other cores waiting
            tokenizer = self._content if content else self._whole
            with suppress(Exception):  # what cannot be tokenized is found again, and told, where it is asked for alone
                encodings = tokenizer.encode_batch(whole, add_special_tokens=False)
                self._ready.update(((content, text), encoding) for text, encoding in zip(whole, encodings, strict=True))
        try:
            yield
        finally:
            self._ready = {}

    def _has_start_mark(self) -> bool:
        alone = self._whole.encode("x", add_special_tokens=False).ids
        after = self._whole.encode(ANCHOR + "x", add_special_tokens=False).ids
        return after[: len(self._anchor)] == self._anchor and after[len(self._anchor) :] != alone

    def _wrapping(self) -> tuple[list[int], list[int]]:
        """What the tokenizer itself puts before and after a text, for example BOS, or [CLS] and [SEP]."""
        plain = self._whole.encode("x", add_special_tokens=False).ids
        wrapped = self._whole.encode("x", add_special_tokens=True).ids
        for start in range(len(wrapped) - len(plain) + 1):
            if wrapped[start : start + len(plain)] == plain:
                return wrapped[:start], wrapped[start + len(plain) :]
        return [], []

    def run(self, pieces: Sequence[Piece], *, continuing: bool) -> list[int]:
        """Ids of a run of pieces; ``continuing``: other tokens stand before it. Raises DataError (see ``content``)."""
        joined = self._encode("".join(piece.text for piece in pieces), continuing, content=False)
        if self._is_safe(joined, pieces):
            return joined.ids
        ids: list[int] = []
        for piece in pieces:
            follows = continuing or bool(ids)
            if piece.content:
                ids += self.content(piece.text, continuing=follows, learned=piece.learned)
            else:
                ids += self._encode(piece.text, follows, content=False).ids
        return ids

    def content(self, text: str, *, continuing: bool, learned: bool = False) -> list[int]:
        """Ids of content alone. A control token that its text would still give is cut apart inside.

        Raises DataError when a single character is a control token.
        """
        forbidden = self.control if learned else self._suspects
        encoding = self._encode(text, continuing)
        if forbidden.isdisjoint(encoding.ids):
            return encoding.ids
        cuts = {0, len(text)}
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token in forbidden and end - start > 1:
                cuts.add((start + end) // 2)
            elif token in forbidden:
                raise DataError(f"{text[start:end]!r} in the content is a control token of this tokenizer")
        edges = sorted(cuts)
        ids: list[int] = []
        for start, end in zip(edges, edges[1:], strict=False):
            ids += self.content(text[start:end], continuing=continuing or bool(ids), learned=learned)
        return ids

    def same_anywhere(self, text: str) -> list[int] | None:
        """Ids of content alone, where they do not depend on what stands before it and hold nothing that is forbidden."""
        if self._marks_start:
            return None
        ids = self._encode(text, continuing=True).ids
        return ids if self.control.isdisjoint(ids) else None

    def content_length(self, text: str) -> int:
        """How many tokens ``content_offsets`` has."""
        encoding = self._encode(text, continuing=True)
        return len(encoding.whole) - encoding.skip

    def content_offsets(self, text: str) -> list[tuple[int, int]]:
        """Character span of each token of content; for cutting a text to a number of tokens."""
        return self._encode(text, continuing=True).offsets

    def id_of(self, token: str) -> int:
        """The id of a token by its text. Raises ModelError when the tokenizer does not have it."""
        found = self._whole.token_to_id(token)
        if found is None:
            raise ModelError(f"the tokenizer has no token {token!r}", fix="repair its `tokenizer_config.json`")
        return found

    def _anchored(self, text: str, continuing: bool) -> str:
        return ANCHOR + text if continuing and self._marks_start and text else text

    def _encode(self, text: str, continuing: bool, *, content: bool = True) -> _Encoding:
        anchored = self._anchored(text, continuing)
        if anchored is not text:
            encoding = self._tokenized(anchored, content)
            size = len(self._anchor)
            if encoding.ids[:size] == self._anchor:
                return _Encoding(encoding, size, len(ANCHOR))
        return _Encoding(self._tokenized(text, content))

    def _tokenized(self, text: str, content: bool) -> Encoding:
        ready = self._ready.get((content, text))
        if ready is not None:
            return ready
        return (self._content if content else self._whole).encode(text, add_special_tokens=False)

    def _is_safe(self, encoding: _Encoding, pieces: Sequence[Piece]) -> bool:
        hits = [index for index, token in enumerate(encoding.ids) if token in self._suspects]
        if not hits:
            return True
        spans = [encoding.span(index) for index in hits]
        start = 0
        for piece in pieces:
            end = start + len(piece.text)
            if piece.content:
                forbidden = self.control if piece.learned else self._suspects
                for index, (left, right) in zip(hits, spans, strict=True):
                    if left < end and right > start and encoding.ids[index] in forbidden:
                        return False
            start = end
        return True


def _copy(saved: str, *, special: bool) -> Tokenizer:
    tokenizer = Tokenizer.from_str(saved)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = not special
    return tokenizer


def _unknown_id(tokenizer: Tokenizer, saved: str) -> int | None:
    """The token for content outside the vocabulary; content may become that one."""
    name = getattr(tokenizer.model, "unk_token", None)
    if isinstance(name, str):
        return tokenizer.token_to_id(name)
    unknown = json.loads(saved)["model"].get("unk_id")
    return unknown if isinstance(unknown, int) else None
