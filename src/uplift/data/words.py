"""Words of a text, and small changes of one: neighbours on the keyboard, swapped letters, letters that scanners confuse."""

from __future__ import annotations

import random
import re

WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
"""What counts as a word: letters, with apostrophes and hyphens inside."""
KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
FUNCTION_WORDS = frozenset(
    WORD.findall(
        """a about above after again against all am an and any are as at be because been before being below between both but by
        can cannot could did do does doing don't down during each either few for from had has have having he her here hers
        herself him himself his how however i if in into is isn't it its it's itself just may me might more most must my myself
        neither no nor not of off on once only or other ought our ours ourselves out over own same shall she should so some
        such than that the their theirs them themselves then there these they this those through to too under until up upon
        very was we were what when where whether which while who whom whose why will with would yet you your yours yourself
        yourselves"""
    )
)
"""English words that carry the grammar: they have no synonyms to speak of."""
OPTIONS = 4
"""Replacements that are tried for a word."""
OCR = (
    ("rn", "m"),
    ("cl", "d"),
    ("vv", "w"),
    ("l", "1"),
    ("O", "0"),
    ("o", "0"),
    ("S", "5"),
    ("B", "8"),
    ("i", "l"),
    ("e", "c"),
)
"""Letters that look alike to a scanner; each pair is mistaken both ways."""


def case_of(word: str) -> str | None:
    """``lower``, ``title`` or ``upper``; None for other spellings."""
    if word.islower():
        return "lower"
    if len(word) > 1 and word.isupper():
        return "upper"
    return "title" if word[:1].isupper() and word[1:].lower() == word[1:] else None


def in_case(word: str, case: str) -> str:
    """``word`` in the given case."""
    return {"lower": word.lower(), "title": word[:1].upper() + word[1:].lower(), "upper": word.upper()}[case]


def keyboard_neighbours(letter: str) -> str:
    """Letters whose keys touch that of ``letter`` (a-z) on a QWERTY keyboard; empty for others."""
    for number, keys in enumerate(KEYBOARD):
        place = keys.find(letter)
        if place < 0:
            continue
        beside = keys[max(0, place - 1) : place] + keys[place + 1 : place + 2]
        above = KEYBOARD[number - 1][place : place + 2] if number else ""
        below = KEYBOARD[number + 1][max(0, place - 1) : place + 1] if number + 1 < len(KEYBOARD) else ""
        return beside + above + below
    return ""


def typos(word: str, rng: random.Random, count: int = OPTIONS) -> list[str]:
    """At most ``count`` different forms of ``word`` with one letter mistyped as its neighbour on the keyboard."""
    found = []
    for place, letter in enumerate(word):
        near = keyboard_neighbours(letter.lower())
        found += [word[:place] + (key.upper() if letter.isupper() else key) + word[place + 1 :] for key in near]
    return rng.sample(found, min(count, len(found)))


def swaps(word: str, rng: random.Random, count: int = OPTIONS) -> list[str]:
    """At most ``count`` different forms of ``word`` with two neighbouring letters swapped."""
    pairs = [place for place in range(len(word) - 1) if word[place] != word[place + 1]]
    found = dict.fromkeys(word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in pairs)
    return rng.sample(list(found), min(count, len(found)))


def misreadings(word: str, rng: random.Random, count: int = OPTIONS) -> list[str]:
    """At most ``count`` different forms of ``word`` with one place misread as a scanner would."""
    pairs = [*OCR, *((other, one) for one, other in OCR)]
    found = dict.fromkeys(
        word[:place] + new + word[place + len(old) :]
        for old, new in pairs
        for place in range(len(word))
        if word.startswith(old, place)
    )
    return rng.sample(list(found), min(count, len(found)))
