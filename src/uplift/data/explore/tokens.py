"""How a tokenizer cuts the texts, and which `max_length` holds them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from uplift.data.explore.findings import Cut, SplitWord, Tokens
from uplift.data.explore.measures import Integers, spread_of
from uplift.data.explore.sample import TextRow

MOST_CHARACTERS = 5_000_000
"""Of texts that are cut into tokens."""
BLOCK = 256
USUAL_LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
COVERED = 0.99
STEP = 64
LONGEST_SUGGESTED, LONGEST_PASSAGE = 8192, 2048
"""Of rows whose end would be cut off, and of rows that would go on in the next passage."""
WORD = re.compile(r"[^\W\d_]{2,40}")
LEAST_PIECES = 3
SPLIT_WORDS = 15
LOOKED_UP = 3000
"""Most frequent words that are looked up in the tokenizer."""
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Cutter:
    """A copy of a tokenizer without truncation, its vocabulary sorted into whole and broken characters."""

    def __init__(self, tokenizer: Any) -> None:
        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        self.vocabulary = len(tokenizer)
        self.unknown = tokenizer.unk_token_id if _is_unknown(tokenizer) else None
        self._broken = np.array([self._is_broken(number) for number in range(self._backend.get_vocab_size())])

    def _is_broken(self, number: int) -> bool:
        """Whether a token is a part of a character: a byte, or a piece that is no text by itself."""
        token = self._backend.id_to_token(number)
        if token is None:
            return False
        return bool(BYTE.fullmatch(token)) or "\ufffd" in self._backend.decode([number], skip_special_tokens=False)

    def lengths(self, texts: Sequence[str]) -> tuple[Integers, int, int]:
        """Tokens of each text, and in all of them: unknown ones, and parts of characters."""
        counts: list[int] = []
        unknown = broken = 0
        for start in range(0, len(texts), BLOCK):
            for encoding in self._backend.encode_batch(list(texts[start : start + BLOCK]), add_special_tokens=False):
                counts.append(len(encoding.ids))
                unknown += encoding.ids.count(self.unknown) if self.unknown is not None else 0
                broken += int(self._broken[encoding.ids].sum()) if encoding.ids else 0
        return np.array(counts, np.int64), unknown, broken

    def pieces(self, word: str) -> list[str]:
        """The pieces of a word in the middle of a text."""
        encoding = self._backend.encode(f"a {word}", add_special_tokens=False)
        spans = [span for span in encoding.offsets if span[1] > 1]
        return [f"a {word}"[max(start, 2) : end] for start, end in spans if end > max(start, 2)]


def _is_unknown(tokenizer: Any) -> bool:
    """A tokenizer on bytes has no unknown text, also where its end token bears the name."""
    return tokenizer.unk_token_id is not None and tokenizer.unk_token_id != tokenizer.eos_token_id


def tokens_of(
    name: str,
    cutter: Cutter,
    rows: Sequence[TextRow],
    overhead: Sequence[int],
    limit: int | None,
    *,
    passages: bool = False,
) -> Tokens:
    """Measure a tokenizer on rows.

    ``overhead``: tokens that the template adds to rows; ``limit``: what the model can read; ``passages``: long rows go on.
    """
    texts = [row.text for row in rows]
    counts, unknown, broken = cutter.lengths(texts)
    total = max(1, int(counts.sum()))
    encoded = counts + (int(np.median(overhead)) if len(overhead) else 1)
    suggested = min(suggested_length(encoded), limit or LONGEST_SUGGESTED, LONGEST_PASSAGE if passages else LONGEST_SUGGESTED)
    usual = sorted({*USUAL_LENGTHS, suggested, *([limit] if limit else [])})
    return Tokens(
        tokenizer=name,
        vocabulary=cutter.vocabulary,
        rows=len(rows),
        content=spread_of(counts),
        encoded=spread_of(encoded),
        bytes_per_token=round(sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) / total, 3),
        fertility=round(total / max(1, sum(len(text.split()) for text in texts)), 3),
        unknown=round(unknown / total, 6),
        byte_pieces=round(broken / total, 6),
        split_words=_split_words(cutter, texts),
        cuts=[cut_at(encoded, length) for length in usual],
        suggested_length=suggested,
        suggested_cut=cut_at(encoded, suggested).rows,
        passages=passages,
    )


def suggested_length(encoded: NDArray[np.int64]) -> int:
    """The least multiple of ``STEP`` that holds 99 % of the rows, but no more than ``LONGEST_SUGGESTED``."""
    held = float(np.quantile(encoded, COVERED, method="higher")) if len(encoded) else 1.0
    return int(min(LONGEST_SUGGESTED, max(STEP, STEP * -(-int(held) // STEP))))


def cut_at(encoded: NDArray[np.int64], length: int) -> Cut:
    """What a `max_length` cuts off."""
    lost = np.maximum(encoded - length, 0)
    rows = float((lost > 0).mean()) if len(encoded) else 0.0
    return Cut(max_length=length, rows=round(rows, 6), tokens=round(float(lost.sum() / max(1, encoded.sum())), 6))


def _split_words(cutter: Cutter, texts: Sequence[str]) -> list[SplitWord]:
    """Words that cost most: occurrences times the pieces beyond the first."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(WORD.findall(text))
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:LOOKED_UP]
    cut = [(word, count, cutter.pieces(word)) for word, count in ranked]
    dear = [item for item in cut if len(item[2]) >= LEAST_PIECES]
    dear.sort(key=lambda item: (-item[1] * (len(item[2]) - 1), item[0]))
    return [SplitWord(word=word, count=count, pieces=pieces) for word, count, pieces in dear[:SPLIT_WORDS]]
