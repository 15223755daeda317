"""One pass over a source: exact counts for every row in a few bytes each, and a random sample for the costly measures."""

from __future__ import annotations

import hashlib
import heapq
import itertools
import json
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uplift.core.errors import DataError, Place
from uplift.core.recipe import TextTask
from uplift.core.values import Sample
from uplift.data.explore.findings import BadExample, BadRule, Column, Goal
from uplift.data.explore.sample import RowSample, TextRow
from uplift.data.explore.task import Aim, find_aim
from uplift.data.formats import content_text, converter
from uplift.data.labels import label_key
from uplift.data.rows import BadRow, Row, RowProblem, bad_row
from uplift.data.sources import Stream, columns_of, missing_column
from uplift.data.splitting import normalized

HEAD = 1000
"""Rows by which columns and text are told."""
GLANCED = 50_000
"""Rows by which the label column is told."""
MOST_DISTINCT = 100_000
MOST_TALLIED = 1000
LONGEST_VALUE = 80
EXAMPLES = 5
EXTREMES = 6
Hashes = NDArray[np.uint64]


@dataclass
class Taken:
    """What one pass over a source kept. ``exact`` and ``keys``: hashes of each row's text, as it is and without case and
    spacing; ``labels``: index into ``label_names`` for each row, -1 without one."""

    stream: Stream
    aim: Aim
    rows_in: int = 0
    quarantined: int = 0
    bad: list[BadRule] = field(default_factory=list)
    columns: list[Column] = field(default_factory=list)
    characters: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    words: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    exact: Hashes = field(default_factory=lambda: np.zeros(0, np.uint64))
    keys: Hashes = field(default_factory=lambda: np.zeros(0, np.uint64))
    labels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    label_names: list[str] = field(default_factory=list)
    shortest: list[TextRow] = field(default_factory=list)
    longest: list[TextRow] = field(default_factory=list)
    sample: RowSample = field(default_factory=RowSample)

    @property
    def rows(self) -> int:
        """Rows that can be learned from."""
        return len(self.keys)


def take_in(stream: Stream, *, aim: Aim | None = None, text: str = "", label: str = "") -> Taken:
    """Read a source once. ``aim``: what another part was found to be; ``text`` and ``label``: columns the user names.

    rows in = rows + quarantined, asserted. Raises DataError: nothing to learn from, a column that does not exist.
    """
    items = iter(stream)
    head: list[Row | BadRow] = list(itertools.islice(items, HEAD))
    first = [item for item in head if isinstance(item, Row)]
    if not first:
        bad = next((item for item in head if isinstance(item, BadRow)), None)
        raise _nothing(str(bad) if bad else "the file is empty", Place(bad.origin.file) if bad else None)
    found = aim or _aim(first, text, label, stream)
    tally = _Tally(stream, found, reader_of(first, found))
    for item in itertools.chain(head, items):
        tally.add(item)
    return tally.result()


def fetch_rows(taken: Taken, numbers: Collection[int]) -> dict[int, TextRow]:
    """Rows by their numbers: from the sample, the others by reading the source again up to the last one."""
    wanted = set(numbers)
    found = {row.number: row for row in taken.sample.first() if row.number in wanted}
    missing = wanted - set(found)
    if missing:
        found |= {row.number: row for row in _reread(taken, missing)}
    return found


def _reread(taken: Taken, wanted: set[int]) -> Iterator[TextRow]:
    items = iter(taken.stream)
    head = list(itertools.islice(items, HEAD))
    convert = reader_of([item for item in head if isinstance(item, Row)], taken.aim)
    number, last = 0, max(wanted)
    for item in itertools.chain(head, items):
        if isinstance(item, BadRow):
            continue
        try:
            row = convert(item, number)
        except RowProblem:
            continue
        if number in wanted:
            yield row
        number += 1
        if number > last:
            return


def reader_of(first: list[Row], aim: Aim) -> Callable[[Row, int], TextRow]:
    """What makes a ``TextRow`` of a row and its number, or raises RowProblem."""
    task = TextTask(text=aim.text) if aim.goal == "classify" else aim.task
    convert, _ = converter(first, task, "language", None)

    def read(row: Row, number: int) -> TextRow:
        sample = convert(row)
        # Classification is read as text, since all labels are known only at the end; a bad label is a bad row all the same.
        label = label_key(row.values.get(aim.label), aim.label) if aim.label else None
        return TextRow(number, row, sample, _whole(sample), content_text(sample), label)

    return read


def _whole(sample: Sample) -> str:
    if sample.text is not None:
        return sample.text
    return "\n\n".join(f"{message.role}: {message.content}" for message in sample.messages)


def _glanced(first: list[Row], stream: Stream) -> list[Row]:
    """The first rows, and of many later ones the short values: sorted files show their second label late."""
    later = (item for item in itertools.islice(stream, HEAD, GLANCED) if isinstance(item, Row))
    return [
        *first,
        *(Row({name: value for name, value in row.values.items() if _is_short(value)}, row.origin) for row in later),
    ]


def _is_short(value: Any) -> bool:
    return not isinstance(value, str | list | dict) or isinstance(value, str) and len(value) <= LONGEST_VALUE


def _aim(first: list[Row], text: str, label: str, stream: Stream) -> Aim:
    columns = columns_of(first)
    place = Place(first[0].origin.file)
    for option, name in (("--column", text), ("--label", label)):
        if name and name not in columns:
            raise missing_column(name, columns, place, option)
    found = find_aim(_glanced(first, stream), columns)
    if text or label:
        column = text or found.text
        goal: Goal = "classify" if label or found.label not in ("", text) else "text"
        found = Aim(goal, found.format, column, label or (found.label if goal == "classify" else ""))
    if found.goal != "chat" and not found.text:
        raise _nothing(f"no column holds text; the columns are: {', '.join(columns)}", place)
    return found


def _nothing(why: str, place: Place | None) -> DataError:
    return DataError("there is nothing here to learn from", where=place, why=why, fix="give rows with text in them")


class _Tally:
    """Counts rows as they come."""

    def __init__(self, stream: Stream, aim: Aim, read: Callable[[Row, int], TextRow]) -> None:
        self._taken, self._read = Taken(stream, aim), read
        self._bad: Counter[str] = Counter()
        self._examples: dict[str, list[BadExample]] = {}
        self._columns: dict[str, _ColumnTally] = {}
        self._characters, self._words = array("q"), array("q")
        self._exact, self._keys, self._labels = array("Q"), array("Q"), array("q")
        self._known: dict[str, int] = {}
        self._short: list[tuple[int, int, TextRow]] = []
        self._long: list[tuple[int, int, TextRow]] = []
        self._read_rows = 0

    def add(self, item: Row | BadRow) -> None:
        self._taken.rows_in += 1
        if isinstance(item, BadRow):
            self._put_aside(item)
            return
        self._count_columns(item)
        try:
            row = self._read(item, len(self._keys))
        except RowProblem as problem:
            self._put_aside(bad_row(item.origin, problem, repr(dict(item.values))))
            return
        self._keep(row)

    def _put_aside(self, bad: BadRow) -> None:
        self._bad[bad.rule] += 1
        examples = self._examples.setdefault(bad.rule, [])
        if len(examples) < EXAMPLES:
            examples.append(BadExample(place=str(bad.place), detail=bad.detail, excerpt=bad.excerpt))

    def _count_columns(self, row: Row) -> None:
        self._read_rows += 1
        for name, value in row.values.items():
            if name not in self._columns:
                self._columns[name] = _ColumnTally()
            self._columns[name].add(value)

    def _keep(self, row: TextRow) -> None:
        self._characters.append(len(row.text))
        self._words.append(len(row.text.split()))
        self._exact.append(hash64(row.text))
        self._keys.append(hash64(normalized(row.text)))
        self._labels.append(-1 if row.label is None else self._known.setdefault(row.label, len(self._known)))
        # Ties stand in the order of the rows; heaps keep the largest of each.
        _push(self._long, (len(row.text), -row.number, row))
        _push(self._short, (-len(row.text), -row.number, row))
        self._taken.sample.offer(row)

    def result(self) -> Taken:
        taken = self._taken
        taken.quarantined = sum(self._bad.values())
        if taken.rows_in != len(self._keys) + taken.quarantined:
            raise AssertionError(f"{taken.rows_in} rows in, {len(self._keys)} kept, {taken.quarantined} put aside")
        if not len(self._keys):
            rule = next(iter(self._examples.values()))[0]
            raise _nothing(f"all {taken.rows_in} rows are bad; the first: {rule.place}: {rule.detail}", None)
        taken.bad = [BadRule(rule=rule, count=count, examples=self._examples[rule]) for rule, count in _ranked(self._bad)]
        uses = {taken.aim.label: "label"} | {name: "text" for name in taken.aim.columns}
        taken.columns = [tally.column(name, self._read_rows, uses.get(name, "")) for name, tally in self._columns.items()]
        taken.characters, taken.words = np.array(self._characters, np.int64), np.array(self._words, np.int64)
        taken.exact, taken.keys = np.array(self._exact, np.uint64), np.array(self._keys, np.uint64)
        taken.labels, taken.label_names = np.array(self._labels, np.int64), list(self._known)
        taken.longest = [row for *_, row in sorted(self._long, key=lambda item: item[:2], reverse=True)]
        taken.shortest = [row for *_, row in sorted(self._short, key=lambda item: item[:2], reverse=True)]
        return taken


def _push(heap: list[tuple[int, int, TextRow]], item: tuple[int, int, TextRow]) -> None:
    if len(heap) < EXTREMES:
        heapq.heappush(heap, item)
    elif item[:2] > heap[0][:2]:
        heapq.heapreplace(heap, item)


def _ranked(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


class _ColumnTally:
    """Types, missing and distinct values of one column."""

    def __init__(self) -> None:
        self._types: Counter[str] = Counter()
        self._present = 0
        self._distinct: set[int] = set()
        self._values: Counter[str] = Counter()

    def add(self, value: Any) -> None:
        if value is None or value == "":
            return
        self._present += 1
        self._types[_type_name(value)] += 1
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        if len(self._distinct) <= MOST_DISTINCT:
            self._distinct.add(hash64(text))
        short = text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"
        if short in self._values or len(self._values) < MOST_TALLIED:
            self._values[short] += 1

    def column(self, name: str, rows: int, use: str) -> Column:
        repeated = sorted(self._values.items(), key=lambda item: -item[1])  # stable: first seen first
        return Column(
            name=name,
            types=dict(sorted(self._types.items())),
            missing=rows - self._present,
            distinct=None if len(self._distinct) > MOST_DISTINCT else len(self._distinct),
            examples=[value for value, _ in repeated[:3]],
            use=use,
        )


def _type_name(value: Any) -> str:
    if isinstance(value, bool):
        return "true/false"
    if isinstance(value, int | float):
        return "number"
    return "text" if isinstance(value, str) else "list" if isinstance(value, list) else "object"


def hash64(text: str) -> int:
    """64 bits of blake2b, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def merged_bad(takens: Iterable[Taken]) -> list[BadRule]:
    """The broken rules of several parts together, most frequent first."""
    counts: Counter[str] = Counter()
    examples: dict[str, list[BadExample]] = {}
    for rule in (rule for taken in takens for rule in taken.bad):
        counts[rule.rule] += rule.count
        examples[rule.rule] = [*examples.get(rule.rule, []), *rule.examples][:EXAMPLES]
    return [BadRule(rule=rule, count=count, examples=examples[rule]) for rule, count in _ranked(counts)]
