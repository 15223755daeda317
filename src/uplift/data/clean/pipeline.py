"""Rows through the steps of `data.prepare`: as a stream, in as many passes as the steps need, every row accounted for.

A step that must see all rows first sketches them while they wait on disk; it then judges them in a second pass. Memory holds
some chunks and the sketches, whatever the number of rows. The result does not depend on the number of workers.
"""

from __future__ import annotations

import re
import time
from array import array
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import gettempdir
from typing import Any, Protocol

from uplift.core.report import StepReport
from uplift.core.storage import scratch_file
from uplift.core.values import Origin
from uplift.data.clean.chunk import (
    CHUNK_ROWS,
    Chunk,
    Done,
    Gone,
    Item,
    Passed,
    Planned,
    Segment,
    Tally,
    carry_out,
    in_chunks,
    segments,
)
from uplift.data.clean.columns import Columns, Slot, text_at, with_texts
from uplift.data.clean.spans import Span, read_spans, write_spans
from uplift.data.clean.spool import Spool
from uplift.data.clean.workers import in_order
from uplift.data.rows import BadRow, RowProblem, bad_row

LINE_BITS = 40
"""Bits of a line number where file and line of a row are kept as one number."""
OTHER_ROW = re.compile(r"\brow (\d+)\b")
"""How a step that has seen all rows names another one, by its running number; people are told the place."""


@dataclass(frozen=True)
class Layout:
    """What the rows of a source look like: the columns with texts, and those with labelled spans of the one text."""

    columns: Columns
    spans: tuple[str, ...] = ()


@dataclass(slots=True)
class Record:
    """A row on its way: the source it is from (a number), its values as they are now, and where it stood."""

    source: int
    values: Mapping[str, Any]
    origin: Origin


@dataclass(frozen=True, slots=True)
class Removed:
    """A row that a step dropped."""

    origin: Origin
    use: str
    rule: str
    detail: str
    excerpt: str

    def as_json(self) -> dict[str, Any]:
        """JSON values, one line of the file of removed rows."""
        place = {"file": self.origin.file, "line": self.origin.line}
        return {**place, "step": self.use, "rule": self.rule, "detail": self.detail, "excerpt": self.excerpt}


@dataclass(frozen=True, slots=True)
class Changed:
    """A row that a rule of a step changed: how often, and the text around the first place before and after."""

    origin: Origin
    use: str
    rule: str
    times: int
    before: str
    after: str

    def as_json(self) -> dict[str, Any]:
        """JSON values, one line of the file of changes."""
        place = {"file": self.origin.file, "line": self.origin.line}
        told = {"step": self.use, "rule": self.rule, "times": self.times}
        return {**place, **told, "before": self.before, "after": self.after}


class Outlet(Protocol):
    """Where rows, and what is told of them, go."""

    def kept(self, record: Record) -> None:
        """A row that passed all steps, in the order of the input."""

    def removed(self, row: Removed) -> None:
        """A row that was dropped."""

    def quarantined(self, row: BadRow) -> None:
        """A row that could not be worked on."""

    def changed(self, row: Changed) -> None:
        """A row that was changed, once for each step and rule."""


@dataclass
class Outcome:
    """What became of all rows: ``rows_in`` = kept + dropped + quarantined.

    ``seconds``: working time of each step, of all processes together. ``other_seconds``: time the main process spent on reading
    rows, on bringing them to the next pass (through a file, where they wait) and on writing.
    """

    rows_in: int = 0
    rows_kept: int = 0
    rows_dropped: int = 0
    rows_quarantined: int = 0
    characters_in: int = 0
    characters_out: int = 0
    steps: tuple[StepReport, ...] = ()
    seconds: tuple[float, ...] = ()
    other_seconds: dict[str, float] = field(default_factory=lambda: {"reading": 0.0, "between passes": 0.0, "writing": 0.0})
    reasons: dict[str, int] = field(default_factory=dict)
    """Quarantined rows by rule."""


@dataclass
class _Held:
    """A row in a chunk with its slots."""

    record: Record
    slots: list[Slot]
    item: Item

    @property
    def size(self) -> int:
        """Characters of its texts."""
        return sum(map(len, self.item.texts))


class Pipeline:
    """Steps in order, to be run over rows once. ``scratch``: an existing folder with room for the rows between passes."""

    def __init__(
        self,
        steps: Sequence[Planned],
        layouts: Sequence[Layout],
        *,
        workers: int = 1,
        scratch: Path | None = None,
        chunk_rows: int = CHUNK_ROWS,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._steps, self._layouts, self._workers, self._tell = tuple(steps), layouts, workers, tell
        self._scratch, self._chunk_rows = scratch or Path(gettempdir()), chunk_rows
        self._outcome = Outcome()
        self._tallies = [Tally() for _ in steps]
        self._places: array[int] = array("Q")
        self._files: dict[str, int] = {}

    def run(self, rows: Iterable[Record | BadRow], outlet: Outlet) -> Outcome:
        """All rows through all steps. Raises what a step raises as UpliftError, and ResourceError (disk, a dead worker)."""
        passes = segments(self._steps)
        records: Iterable[Record] = self._good(rows, outlet)
        with ExitStack() as stack:
            for number, segment in enumerate(passes, start=1):
                names = ", ".join(
                    [*(step.use for step in segment.steps), *([segment.sketched.use] if segment.sketched else [])]
                )
                self._tell(f"pass {number} of {len(passes)}: {names or 'reading'}")
                clock = "reading" if number == 1 else "between passes"
                chunks = _timed(self._chunks(records, outlet, first_pass=number == 1), self._outcome.other_seconds, clock)
                if segment.sketched is None:
                    deque(self._pass(segment, chunks, outlet, None), maxlen=0)
                    break
                spool = Spool(stack.enter_context(scratch_file(self._scratch)), self._scratch)
                with closing(self._pass(segment, chunks, outlet, spool)) as sketches:
                    self._settle(segment.sketched, sketches)
                records = self._unspooled(spool)
        return self._accounts()

    def _settle(self, step: Planned, sketches: Iterator[Any]) -> None:
        """The step decides; what it takes to make the sketches is not its time."""
        making: dict[str, float] = {"sketches": 0.0}
        given = _timed(sketches, making, "sketches")
        begin = time.perf_counter()
        step.step.settle(given)
        self._tallies[step.number].seconds += time.perf_counter() - begin - making["sketches"]
        deque(given, maxlen=0)  # every row must have passed, whatever the step has looked at

    # -- rows in -----------------------------------------------------------------------------------------------------------
    def _good(self, rows: Iterable[Record | BadRow], outlet: Outlet) -> Iterator[Record]:
        for row in rows:
            self._outcome.rows_in += 1
            if isinstance(row, Record):
                yield row
            else:
                self._quarantine(row, outlet)

    def _quarantine(self, row: BadRow, outlet: Outlet) -> None:
        self._outcome.rows_quarantined += 1
        self._outcome.reasons[row.rule] = self._outcome.reasons.get(row.rule, 0) + 1
        outlet.quarantined(row)

    def _chunks(self, records: Iterable[Record], outlet: Outlet, first_pass: bool) -> Iterator[tuple[list[_Held], Chunk]]:
        number = 0
        for held in in_chunks(self._sized(records, outlet, first_pass), lambda one: one.size, self._chunk_rows):
            yield held, Chunk(number, [each.item for each in held])
            number += len(held)

    def _sized(self, records: Iterable[Record], outlet: Outlet, first_pass: bool) -> Iterator[_Held]:
        for record in records:
            try:
                one = self._held(record)
            except RowProblem as problem:
                self._quarantine(bad_row(record.origin, problem, repr(dict(record.values))), outlet)
                continue
            if first_pass:
                self._outcome.characters_in += one.size
            yield one

    def _held(self, record: Record) -> _Held:
        layout = self._layouts[record.source]
        found = layout.columns.slots(record.values)
        if not found:
            raise RowProblem("empty_text", f"there is no text in {', '.join(f'`{name}`' for name in layout.columns.names)}")
        texts = [text_at(record.values, slot) for slot, _ in found]
        system = tuple(index for index, (_, is_system) in enumerate(found) if is_system)
        spans: list[Span | None] = []
        for name in layout.spans:
            spans += read_spans(record.values.get(name), texts[0], name)
        return _Held(record, [slot for slot, _ in found], Item(texts, system, spans))

    # -- one pass ----------------------------------------------------------------------------------------------------------
    def _pass(
        self, segment: Segment, chunks: Iterable[tuple[list[_Held], Chunk]], outlet: Outlet, spool: Spool | None
    ) -> Generator[Any, None, None]:
        """Carries out a segment on all rows; those that stay go to ``spool``, or out. Gives the sketches, in order."""
        earlier, self._places = self._places, array("Q")
        names = list(self._files)
        for held, done in in_order(partial(carry_out, segment), chunks, self._workers):
            begin = time.perf_counter()
            self._count(segment, done, held, outlet)
            left: list[Item] = []
            for one, outcome in zip(held, done.outcomes, strict=True):
                if isinstance(outcome, Gone):
                    self._gone(one.record, outcome, outlet, earlier, names)
                    continue
                if outcome is not None:
                    self._update(one, outcome)
                left.append(outcome or one.item)
                if spool is not None:
                    self._spool(one.record, spool)
                else:
                    self._outcome.rows_kept += 1
                    self._outcome.characters_out += sum(map(len, left[-1].texts))
                    outlet.kept(one.record)
            self._outcome.other_seconds["writing" if spool is None else "between passes"] += time.perf_counter() - begin
            if segment.sketched is not None:
                yield self._sketched_alone(segment.sketched, left) if segment.sketched.alone else done.sketch

    def _sketched_alone(self, step: Planned, items: Sequence[Item]) -> Any:
        begin = time.perf_counter()
        sketch = step.step.sketch([item.joined() for item in items])
        self._tallies[step.number].seconds += time.perf_counter() - begin
        return sketch

    def _update(self, one: _Held, item: Item) -> None:
        record = one.record
        values = with_texts(record.values, one.slots, item.texts)
        at = 0
        for name in self._layouts[record.source].spans:
            length = len(values.get(name) or ())
            values[name] = write_spans(values.get(name), item.spans[at : at + length])
            at += length
        record.values = values

    def _spool(self, record: Record, spool: Spool) -> None:
        file = self._files.setdefault(record.origin.file, len(self._files))
        self._places.append(file << LINE_BITS | record.origin.line)
        spool.append([record.source, file, record.origin.line, record.values])

    def _unspooled(self, spool: Spool) -> Iterator[Record]:
        names = list(self._files)
        for source, file, line, values in spool:
            yield Record(source, values, Origin(names[file], line))

    def _gone(self, record: Record, gone: Gone, outlet: Outlet, places: array[int], names: Sequence[str]) -> None:
        if gone.failed:
            self._quarantine(BadRow(record.origin, gone.rule, gone.detail, None, gone.excerpt), outlet)
            return

        def place(match: re.Match[str]) -> str:
            at = int(match[1])
            known = at < len(places)
            return f"{names[places[at] >> LINE_BITS]}:{places[at] & (1 << LINE_BITS) - 1}" if known else match[0]

        step = self._steps[gone.number]
        detail = OTHER_ROW.sub(place, gone.detail) if step.step.looks_at_all else gone.detail
        self._outcome.rows_dropped += 1
        outlet.removed(Removed(record.origin, step.use, gone.rule, detail, gone.excerpt))

    # -- accounts ----------------------------------------------------------------------------------------------------------
    def _count(self, segment: Segment, done: Done, held: Sequence[_Held], outlet: Outlet) -> None:
        for step, tally in zip(segment.counted, done.tallies, strict=True):
            self._tallies[step.number].add(tally)
            for row in tally.touched:
                origin = held[row.row].record.origin
                outlet.changed(Changed(origin, step.use, row.rule, row.times, row.before, row.after))

    def _accounts(self) -> Outcome:
        return account_of(self._outcome, [(step.use, tally) for step, tally in zip(self._steps, self._tallies, strict=True)])


def account_of(outcome: Outcome, tallies: Sequence[tuple[str, Tally]]) -> Outcome:
    """The outcome with what each step (by its ``use`` name) did. Raises AssertionError when the counts do not add up."""
    outcome.steps = tuple(_report(use, tally) for use, tally in tallies)
    outcome.seconds = tuple(tally.seconds for _, tally in tallies)
    parts = outcome.rows_kept + outcome.rows_dropped + outcome.rows_quarantined
    if outcome.rows_in != parts or outcome.rows_dropped != sum(step.rows_dropped for step in outcome.steps):
        raise AssertionError(f"rows were lost or made: {outcome}")
    return outcome


def _timed(items: Iterable[Passed], clocks: dict[str, float], name: str) -> Iterator[Passed]:
    """The items; the seconds that it takes to make them are added to a clock."""
    begin = time.perf_counter()
    for item in items:
        clocks[name] += time.perf_counter() - begin
        yield item
        begin = time.perf_counter()
    clocks[name] += time.perf_counter() - begin


def _report(use: str, tally: Tally) -> StepReport:
    return StepReport(
        use=use,
        rows_in=tally.rows_in,
        rows_out=tally.rows_out,
        failed=tally.failed,
        changed=tally.changed,
        dropped=dict(sorted(tally.dropped.items())),
        changes=dict(sorted(tally.changes.items())),
        spans_cut=tally.spans_cut,
        characters_in=tally.characters_in,
        characters_out=tally.characters_out,
    )
