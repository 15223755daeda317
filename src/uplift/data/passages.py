"""Long texts as consecutive passages: what does not fit into one sample is the next one, and nothing is left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from uplift.core.values import Sample
from uplift.data.chat import GOES_ON, Encoder
from uplift.data.formats import sample_id

SPARE = 2
"""Tokens left free: a passage that is tokenized alone can have one or two more than inside its text."""


def passages(samples: Sequence[Sample], encoder: Encoder) -> list[Sample]:
    """``samples``, with every plain text that is longer than the encoder's limit cut into passages that fit.

    Cuts are made before a space where there is one in the later half of a passage. Joined, the passages are the text; only
    the last one ends with the end token. Chats, labelled texts and encoders' texts stay as they are.
    """
    room = encoder.room - SPARE
    spans = encoder.token_spans([sample.text or "" for sample in samples if _may_be_long(sample, encoder)], room)
    found: list[Sample] = []
    for sample in samples:
        long = next(spans) if _may_be_long(sample, encoder) else None
        found += [sample] if long is None else _passages(sample, long, room)
    return found


def _may_be_long(sample: Sample, encoder: Encoder) -> bool:
    room = encoder.room - SPARE
    if sample.text is None or sample.label is not None or encoder.kind != "causal" or room < 1:
        return False
    return len(sample.text) > room or len(sample.text.encode()) > room  # a token stands for a byte at least


def _passages(sample: Sample, spans: Sequence[tuple[int, int]], room: int) -> Iterator[Sample]:
    text = sample.text or ""
    edges = [0, *_edges(text, spans, room), len(text)]
    if len(edges) == 2:
        yield sample
        return
    for index, (start, end) in enumerate(zip(edges, edges[1:], strict=False)):
        extras = {**sample.extras, GOES_ON: True} if end < len(text) else sample.extras
        yield replace(sample, id=sample_id(f"{sample.id}\x1f{index}"), text=text[start:end], extras=extras)


def _edges(text: str, spans: Sequence[tuple[int, int]], room: int) -> Iterator[int]:
    """Characters at which a new passage begins, the first one left out."""
    first = 0
    while len(spans) - first > room:
        later = range(first + room, first + max(1, room // 2) - 1, -1)
        # A character of several tokens is never cut.
        whole = [index for index in later if spans[index][0] > spans[index - 1][0]]
        spaced = next((index for index in whole if text[spans[index][0]].isspace()), None)
        index = spaced if spaced is not None else whole[0] if whole else first + room
        if spans[index][0] > spans[first][0]:
            yield spans[index][0]
        first = index
