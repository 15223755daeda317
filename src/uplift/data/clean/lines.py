"""Lines or paragraphs that stand in many rows (menus, licences, signatures) stay only where they were seen first.

Units are the same when they differ in nothing but case and spacing. "First" is decided by the order of the rows, not by who
works on them. Units with less than ``length`` characters are never compared, so blank lines and the short lines of code stay.

What is remembered of a unit that is compared: 8 bytes, and 16 more while the repeated ones are looked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from uplift.core.prepare_section import Lines
from uplift.data.clean.step import CleaningStep, Edit, Verdict, dropped, edited, joined
from uplift.data.splitting import normalized
from uplift.data.word_runs import Counts

Unit = tuple[int, int]
"""Where a line or a paragraph begins in a text, and where the line feed after it is."""


class Sketch(NamedTuple):
    """How many units of each text are compared, and their hashes, text after text."""

    counts: Counts
    hashes: NDArray[np.uint64]


class LineDeduplicator(CleaningStep):
    """Removes units: rules ``repeated_line``, ``repeated_paragraph``. A row of nothing else goes: rule ``all_repeated``."""

    looks_at_all: ClassVar[bool] = True
    sketches: ClassVar = Sketch

    def __init__(self, section: Lines) -> None:
        self.section = section
        self._offsets: Counts = np.zeros(1, dtype=np.int64)
        """Of each row, where its compared units begin among all of them."""
        self._repeated = np.zeros(0, dtype=bool)
        """Of each compared unit, whether it goes."""

    def sketch(self, texts: Sequence[str]) -> Sketch:
        """Hashes of the units that are long enough."""
        counts = np.zeros(len(texts), dtype=np.int64)
        digests: list[bytes] = []
        for index, text in enumerate(texts):
            before = len(digests)
            for _, key in self._compared(text, self._units(text)):
                digests.append(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest())
            counts[index] = len(digests) - before
        return Sketch(counts, np.frombuffer(b"".join(digests), dtype="<u8"))

    def settle(self, sketches: Iterable[Sketch]) -> None:
        """Find the units that came ``repeats`` times before."""
        counts, hashes = joined(self.sketch([]), sketches)
        self._offsets = np.concatenate([[0], np.cumsum(counts)])
        order = np.argsort(hashes, kind="stable")  # equal ones stay in the order of the rows
        hashes = hashes[order]
        begins = np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]])[: len(hashes)])
        earlier = np.arange(len(hashes)) - np.repeat(begins, np.diff(begins, append=len(hashes)))
        self._repeated = np.zeros(len(hashes), dtype=bool)
        self._repeated[order[earlier >= self.section.repeats]] = True

    def decision(self) -> Mapping[str, NDArray[Any]]:
        """Where the units of each row begin, and of each unit whether it goes."""
        return {"offsets": self._offsets, "repeated": self._repeated}

    def decide(self, decision: Mapping[str, NDArray[Any]]) -> None:
        """A decision made elsewhere."""
        self._offsets, self._repeated = decision["offsets"], decision["repeated"]

    def judge(self, row: int, text: str) -> Verdict:
        """The text without the units that go."""
        flags = self._repeated[self._offsets[row] : self._offsets[row + 1]]
        if not flags.any():
            return Verdict(text)
        units = self._units(text)
        goes = {at for (at, _), flag in zip(self._compared(text, units), flags.tolist(), strict=True) if flag}
        last = max((at for at in range(len(units)) if at not in goes), default=-1)
        edits = []
        for at in sorted(goes):
            begin, end = units[at]
            if at > last:  # what follows goes too: so does the break before
                begin = units[at - 1][1] if at else 0
            else:
                end = units[at + 1][0]
            edits.append(Edit(begin, end, "", f"repeated_{self.section.unit}"))
        verdict = edited(text, edits)
        if verdict.text and verdict.text.strip():
            return verdict
        return dropped("all_repeated", f"nothing but {len(goes)} {self.section.unit}(s) seen before")

    def _units(self, text: str) -> list[Unit]:
        """All lines, empty ones too; or paragraphs, which blank lines separate."""
        lines, start = [], 0
        for line in text.split("\n"):
            lines.append((start, start + len(line)))
            start += len(line) + 1
        return lines if self.section.unit == "line" else _paragraphs(text, lines)

    def _compared(self, text: str, units: Sequence[Unit]) -> Iterator[tuple[int, str]]:
        """The units that are long enough: the number of each, and its text without case and spacing."""
        for at, (begin, end) in enumerate(units):
            if end - begin >= self.section.length:
                key = normalized(text[begin:end])
                if len(key) >= self.section.length:
                    yield at, key


def _paragraphs(text: str, lines: Sequence[Unit]) -> list[Unit]:
    result: list[Unit] = []
    open_since = -1
    for begin, end in lines:
        if end > begin and not text[begin:end].isspace():
            open_since = begin if open_since < 0 else open_since
            close = end
        elif open_since >= 0:
            result.append((open_since, close))
            open_since = -1
    return [*result, (open_since, close)] if open_since >= 0 else result
