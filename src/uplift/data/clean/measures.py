"""What the rules of C4, Gopher and FineWeb look at in a text, each computed once and only when it is asked for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property

LONGEST_GRAM = 10

TOKEN = re.compile(r"https?://[^\s\"'<>]+|/?\w+(?:\.\w+|(?<=\d),\d+)*|['’](?:s|t|re|ll|ve|d|m)\b|\.+|-+|[^\w\s]")
"""A word, a number, a name with dots, a part of a path, an address, the end of a contraction, or a punctuation mark (dots in a
row are one). So the counts come close to those of spaCy's English tokenizer, with which FineWeb's thresholds were found."""
LETTER = re.compile(r"[^\W\d_]")
LINE_BREAKS = re.compile("\n++")
PARAGRAPH_BREAKS = re.compile("\n{2,}+")
SENTENCE_END = re.compile(
    r"[.?!…。！？]++(?<!\b[A-Z]\.)(?<!\bMr\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bMrs\.)(?<!\bSt\.)(?<!\bvs\.)"
    r"(?:(?<=[。！？])|[\"'”’»)\]]*+(?=[ \t]*+(?:\n|\Z)|\s++[^\sa-z]))"
)
"""At the end of a line, or before what is no word in lower case; not after an initial or a title."""


class Measures:
    """A text, taken apart as far as the rules ask for it."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def lines(self) -> list[str]:
        """The lines that are not blank."""
        return [line for line in self.text.split("\n") if line and not line.isspace()]

    @cached_property
    def sentences(self) -> int:
        """How many sentences there are, those without an end mark not counted."""
        return len(SENTENCE_END.findall(self.text))

    @cached_property
    def tokens(self) -> list[str]:
        """Words, numbers and punctuation marks."""
        return TOKEN.findall(self.text)

    @cached_property
    def vocabulary(self) -> Counter[str]:
        """Each different token, and how often it occurs."""
        return Counter(self.tokens)

    @cached_property
    def _not_letters(self) -> list[str]:
        """Those of the vocabulary that are not letters alone; they are few, and the rest needs no second look."""
        return [token for token in self.vocabulary if not token.isalpha()]

    @cached_property
    def words(self) -> int:
        """How many tokens are words or numbers."""
        return len(self.tokens) - sum(self.vocabulary[mark] for mark in self._marks)

    @cached_property
    def word_characters(self) -> int:
        """How many characters are in words and numbers."""
        return sum(map(len, self.tokens)) - sum(self.vocabulary[mark] * len(mark) for mark in self._marks)

    @cached_property
    def _marks(self) -> list[str]:
        return [token for token in self._not_letters if not any(map(str.isalnum, token))]

    @cached_property
    def alphabetic(self) -> int:
        """How many tokens hold a letter."""
        return len(self.tokens) - sum(self.vocabulary[token] for token in self._not_letters if not LETTER.search(token))

    @cached_property
    def repeated_lines(self) -> tuple[float, float]:
        """Share of the lines that stood there before, and of their characters in the text."""
        return self._repeated(LINE_BREAKS.split(self.text))

    @cached_property
    def repeated_paragraphs(self) -> tuple[float, float]:
        """The same of paragraphs."""
        return self._repeated(PARAGRAPH_BREAKS.split(self.text.strip()))

    def _repeated(self, parts: Sequence[str]) -> tuple[float, float]:
        number, characters = repeated_parts(parts)
        return number / len(parts), characters / max(1, len(self.text))

    @cached_property
    def _levels(self) -> dict[int, list[tuple[int, int]]]:
        """Size of n-gram -> where those stand that occur twice or more, in order, and the number of each.

        An n-gram that occurs twice begins and ends with (n-1)-grams that do, so each size looks only at what the one before
        left: a few places in most texts, which plain loops pass faster than array operations.
        """
        numbers = {token: number for number, (token, count) in enumerate(self.vocabulary.items()) if count > 1}
        ids = list(map(numbers.get, self.tokens))
        grams = [(place, number) for place, number in enumerate(ids) if number is not None]
        levels = {1: grams}
        for size in range(2, LONGEST_GRAM + 1):
            wider = [
                (place, number * len(self.vocabulary) + (ids[place + size - 1] or 0))
                for (place, number), (following, _) in zip(grams, grams[1:], strict=False)
                if following == place + 1
            ]
            counts = Counter([key for _, key in wider])
            numbered = {key: number for number, (key, count) in enumerate(counts.items()) if count > 1}
            grams = [(place, numbered[key]) for place, key in wider if key in numbered]
            levels[size] = grams
        return levels

    def top_n_gram(self, size: int) -> float:
        """Share of the text that the most frequent n-gram has (the first of several), if it occurs twice or more."""
        grams = self._levels[size]
        if not grams:
            return 0.0
        number, count = Counter([number for _, number in grams]).most_common(1)[0]
        first = next(place for place, each in grams if each == number)
        return len(" ".join(self.tokens[first : first + size])) * count / len(self.text)

    def repeated_n_grams(self, size: int) -> float:
        """Share of the text in n-grams that stood there before, none counted twice: from left to right, without overlap."""
        seen: set[int] = set()
        free, characters = 0, 0
        for place, number in self._levels[size]:
            if place < free:
                continue
            if number in seen:
                characters += sum(map(len, self.tokens[place : place + size]))
                free = place + size
            seen.add(number)
        return characters / max(1, len(self.text))


def repeated_parts(parts: Sequence[str]) -> tuple[int, int]:
    """How many parts stood there before, and the characters in them."""
    unique = set(parts)
    if len(unique) == len(parts):
        return 0, 0
    return len(parts) - len(unique), sum(map(len, parts)) - sum(map(len, unique))
