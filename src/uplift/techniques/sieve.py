"""What written rows are refused for: nothing in them, known already, like another, in a held-out part, said before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from uplift.data.clean.minhash import MinHash, Signatures
from uplift.data.leakage import GRAM
from uplift.data.rows import RowProblem, check_text
from uplift.data.splitting import normalized
from uplift.data.word_runs import KnownHashes, hash_runs, hash_words

SHINGLES = MinHash(gram=2)
"""Pairs of words: rows are short, and longer runs would call every small change another text."""
PHRASE = 3
"""Words of a run that counts as said before."""
QUOTES = (('"', '"'), ("\u201c", "\u201d"), ("\u00ab", "\u00bb"))


def plain(text: str) -> str:
    """An answer as a row's text: without broken characters, and without the quotation marks that models put around a text."""
    text = "".join(letter for letter in text if letter != "\ufffd" and (letter.isprintable() or letter in "\n\t")).strip()
    for begin, end in QUOTES:
        if len(text) > 2 and text[0] == begin and text[-1] == end and not {begin, end} & set(text[1:-1]):
            return text[1:-1].strip()
    return text


class Sieve:
    """Texts are judged one after the other; one that is taken counts as known for the next.

    ``near``: Jaccard similarity of word pairs (estimated) from which a text is a near duplicate; None: only equal ones are.
    ``said``: largest share of a text's three-word runs that texts taken before may have used; 1: any.
    """

    def __init__(self, known: Sequence[str], held: Sequence[str], near: float | None = None, said: float = 1.0) -> None:
        self._near, self._said = near, said
        self._known = {normalized(text) for text in known}
        self._signatures = _signatures(known if near is not None else [])
        self._filled = len(self._signatures)
        self._held = KnownHashes(hash_runs(hash_words(held), GRAM)[0])
        self._held_texts = {normalized(text) for text in held}
        self._phrases: set[int] = set()
        self._two: list[int] = []

    def judge(self, text: str) -> str:
        """Why the text is refused, in a word; "" and it is taken."""
        try:
            check_text(text, "text")
        except RowProblem as problem:
            return problem.rule
        words = hash_words([text])
        if normalized(text) in self._held_texts or len(self._held.find(hash_runs(words, GRAM)[0])[0]):
            return "held_out"
        if normalized(text) in self._known:
            return "duplicate"
        own = _signatures([text])
        if self._near is not None and (SHINGLES.similarity(self._signatures[: self._filled], own) >= self._near).any():
            return "near_duplicate"
        phrases = set(hash_runs(words, PHRASE)[0].tolist())
        if phrases and len(phrases & self._phrases) > self._said * len(phrases):
            return "said_before"
        self._known.add(normalized(text))
        self._remember(own)
        self._phrases |= phrases
        self._two += hash_runs(words, 2)[0].tolist()
        return ""

    def _remember(self, own: Signatures) -> None:
        """Room doubles when it is full, so that many texts cost little each."""
        if self._filled + len(own) > len(self._signatures):
            self._signatures = np.concatenate([self._signatures, np.zeros_like(self._signatures), own])
        self._signatures[self._filled : self._filled + len(own)] = own
        self._filled += len(own)

    @property
    def distinct(self) -> float:
        """Share of different ones among the word pairs of the texts that were taken (distinct-2, Li et al. 2016)."""
        return len(set(self._two)) / max(1, len(self._two))


def _signatures(texts: Sequence[str]) -> Signatures:
    signatures, meaningful = SHINGLES.signatures(texts)
    return np.asarray(signatures[meaningful])
