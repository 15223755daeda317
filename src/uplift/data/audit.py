"""What will be learned, checked before step 1: counts of samples that teach nothing or the wrong thing, and previews."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from uplift.core.errors import DataError
from uplift.core.values import Encoded
from uplift.data.chat import Encoder

MOST_MASKED = 0.05
"""Largest share of samples that may teach nothing."""
PREVIEWS = 3
PREVIEW_TOKENS = 200


@dataclass(frozen=True)
class Audit:
    """Counts over the encoded samples; lengths in tokens. ``previews``: decoded samples, «learned parts» marked."""

    samples: int
    tokens: int
    learned_tokens: int
    longest: int
    all_masked: int
    """Nothing is learned: no answer token is left, or (class head) there is no label."""
    empty: int
    """No token at all."""
    prompt_cut: int
    answer_truncated: int
    """The end of the answer, with its end-of-turn token, was cut off by the length limit."""
    text_cut: int
    prompt_fills: int
    """The question alone reaches the length limit."""
    missing_end: int
    """Learned to its end, but no token is learned that says stop."""
    double_start: int
    """Begins with two beginning-of-text tokens."""
    previews: tuple[str, ...] = ()

    def problems(self) -> list[str]:
        """One line for each thing that is not as it should be."""
        return [f"{count} of {self.samples} samples {problem}" for problem, count in self.counts().items()]

    def counts(self) -> dict[str, int]:
        """Samples by what is wrong with them."""
        told = {
            "teach nothing (no answer token is left to learn)": self.all_masked,
            "have no token at all": self.empty,
            "have an answer whose end is cut off; the model does not learn to stop there": self.answer_truncated,
            "have a shortened question": self.prompt_cut,
            "have a shortened text": self.text_cut,
            "have a question that fills the length limit": self.prompt_fills,
            "teach no end-of-turn token; the model may not stop": self.missing_end,
            "begin with two beginning-of-text tokens": self.double_start,
        }
        return {problem: count for problem, count in told.items() if count}

    def raise_if_bad(self) -> None:
        """Raises DataError when there is nothing to train on, or more than ``MOST_MASKED`` of it teaches nothing."""
        useless = max(self.all_masked, self.empty)
        if useless > MOST_MASKED * self.samples or not self.samples:
            what = f"{useless} of {self.samples} training samples teach nothing"
            fix = "raise `train.max_length`, shorten the texts, or check the columns and the chat template"
            raise DataError(what, where="train.max_length", why="\n       ".join([*self.problems(), *self.previews]), fix=fix)

    def __str__(self) -> str:
        share = self.learned_tokens / self.tokens if self.tokens else 0.0
        head = f"{self.samples} samples, {self.tokens} tokens, {share:.0%} learned, longest {self.longest}"
        return "\n".join([head, *self.problems(), *self.previews])


def audit(encoded: Sequence[Encoded], encoder: Encoder, *, head: Literal["language", "class"] = "language") -> Audit:
    """Look at every encoded training sample. ``head`` says what is trained on: answer tokens, or labels."""
    language = head == "language"
    learned = [[i for i, weight in enumerate(item.weights) if weight > 0] for item in encoded]
    cuts = [encoder.cuts.get(item.id, frozenset()) for item in encoded]
    ends, start = encoder.end_ids, encoder.tokenizer.bos_token_id
    missing = [
        bool(own) and not cut & {"answer", "text", "passage"} and item.ids[own[-1]] not in ends
        for item, own, cut in zip(encoded, learned, cuts, strict=True)
    ]
    limit = encoder.max_length
    return Audit(
        samples=len(encoded),
        tokens=sum(map(len, encoded)),
        learned_tokens=sum(map(len, learned)),
        longest=max(map(len, encoded), default=0),
        all_masked=sum(not own if language else item.label is None for item, own in zip(encoded, learned, strict=True)),
        empty=sum(not item.ids for item in encoded),
        prompt_cut=sum("prompt" in cut for cut in cuts),
        answer_truncated=sum("answer" in cut for cut in cuts),
        text_cut=sum("text" in cut for cut in cuts),
        prompt_fills=sum(language and len(item) >= limit and not own for item, own in zip(encoded, learned, strict=True)),
        missing_end=sum(missing) if language else 0,
        double_start=sum(start is not None and list(item.ids[:2]) == [start, start] for item in encoded),
        previews=tuple(preview(encoded[index], encoder) for index in _spread(len(encoded))),
    )


def preview(item: Encoded, encoder: Encoder) -> str:
    """One sample decoded as the model sees it, learned stretches in «guillemets», a class index at the end."""
    stretches = decoded_stretches(item, encoder)
    text = "".join(f"«{part}»" if learned else part for part, learned in stretches)
    inside = any(learned for _, learned in stretches)
    return text if inside or item.label is None else f"{text} → class {item.label}"


def decoded_stretches(item: Encoded, encoder: Encoder) -> list[tuple[str, bool]]:
    """One sample decoded as the model sees it: stretches of text, and whether each is learned; an ellipsis where it is cut."""
    ids, shown = list(item.ids), _window(item)
    decode = encoder.tokenizer.decode
    parts = [
        (str(decode(ids[start:stop], skip_special_tokens=False, clean_up_tokenization_spaces=False)), learned)
        for start, stop, learned in _stretches(item, shown)
    ]
    return [*([("…", False)] if shown.start else []), *parts, *([("…", False)] if shown.stop < len(ids) else [])]


def _window(item: Encoded) -> range:
    """The tokens to show: the end of the sample when it is learned, else its beginning."""
    if len(item) <= PREVIEW_TOKENS:
        return range(len(item))
    first = next((i for i, weight in enumerate(item.weights) if weight > 0), 0)
    start = max(0, min(first - PREVIEW_TOKENS // 2, len(item) - PREVIEW_TOKENS))
    return range(start, start + PREVIEW_TOKENS)


def _stretches(item: Encoded, shown: range) -> list[tuple[int, int, bool]]:
    stretches: list[tuple[int, int, bool]] = []
    for index in shown:
        learned = item.weights[index] > 0
        if stretches and stretches[-1][2] == learned:
            stretches[-1] = (stretches[-1][0], index + 1, learned)
        else:
            stretches.append((index, index + 1, learned))
    return stretches


def _spread(count: int) -> list[int]:
    """First, middle and last (fewer when there are fewer)."""
    return sorted({0, count // 2, count - 1}) if count else []
