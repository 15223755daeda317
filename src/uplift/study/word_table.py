"""A table as rows of words: the terminal and the page show the same one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WordTable:
    """``head`` names the columns, the first of words and the others of numbers; ``lead`` says how to read it.

    ``words`` names further columns of words.
    """

    title: str
    lead: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: tuple[str, ...] = ()
