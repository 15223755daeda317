"""What is done to a chunk of rows in one go, in this process or in a worker: steps in order, every verdict counted."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from uplift.core.errors import UpliftError
from uplift.data.clean.spans import Span, edits_between, first_difference, move_spans
from uplift.data.clean.step import CleaningStep, Edit, Verdict
from uplift.data.rows import RowProblem, check_characters, excerpt

JOIN = "\n\n"
"""Between the texts of a row for steps that look at the whole row."""
EMPTY = "empty"
"""The rule for a row that a change left without text."""
CHUNK_ROWS = 500
CHUNK_CHARACTERS = 2**20
"""A chunk is full at either; one longer row is a chunk of its own."""
Passed = TypeVar("Passed")


@dataclass(frozen=True)
class Planned:
    """A step with its place among all (``number``) and its ``use`` name.

    ``whole``: it looks at the texts of a row together, else at each alone. ``may_drop`` False: a verdict that would drop leaves
    the text as it is. ``alone``: it sketches in the main process, since it holds what should exist once (a model).
    """

    number: int
    use: str
    step: CleaningStep
    whole: bool = True
    may_drop: bool = True
    alone: bool = False


@dataclass(slots=True)
class Item:
    """The texts of a row, the numbers of those that are system turns, and the labelled spans of its one text."""

    texts: list[str]
    system: tuple[int, ...] = ()
    spans: list[Span | None] = field(default_factory=list)

    def said(self) -> list[int]:
        """Numbers of the texts that are no system turns; all of them when there are no others."""
        return [index for index in range(len(self.texts)) if index not in self.system] or list(range(len(self.texts)))

    def joined(self) -> str:
        """What the row says."""
        return self.texts[0] if len(self.texts) == 1 else JOIN.join(self.texts[index] for index in self.said())


@dataclass(frozen=True, slots=True)
class Gone:
    """A row that does not go on: by which step and rule, why, and how it begins. ``failed``: it is quarantined, not dropped."""

    number: int
    rule: str
    detail: str
    excerpt: str
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Touched:
    """A row of the chunk that a rule changed: how often, and what stood around the first place before and after."""

    row: int
    rule: str
    times: int
    before: str
    after: str


@dataclass
class Tally:
    """What one step did; adds up over chunks. ``seconds`` are those of all processes together."""

    rows_in: int = 0
    rows_out: int = 0
    changed: int = 0
    failed: int = 0
    spans_cut: int = 0
    characters_in: int = 0
    characters_out: int = 0
    seconds: float = 0.0
    dropped: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    touched: list[Touched] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Counts of another chunk; the rows that it touched are left to the caller."""
        for name in ("rows_in", "rows_out", "changed", "failed", "spans_cut", "characters_in", "characters_out", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.dropped.update(other.dropped)
        self.changes.update(other.changes)


@dataclass(frozen=True)
class Segment:
    """Steps that are carried out on a chunk together, and the step that then sketches what is left, if there is one."""

    steps: tuple[Planned, ...]
    sketched: Planned | None = None

    @property
    def sketches_here(self) -> bool:
        """Whether the sketch is made where the chunk is worked on."""
        return self.sketched is not None and not self.sketched.alone

    @property
    def counted(self) -> list[Planned]:
        """The steps whose tallies ``carry_out`` gives, in order."""
        return [*self.steps, *([self.sketched] if self.sketched and self.sketches_here else [])]


@dataclass
class Chunk:
    """Rows in order; ``first`` is the running number of the first in this pass."""

    first: int
    items: list[Item]


@dataclass
class Done:
    """A chunk after a segment: each row as it goes on (None: unchanged) or as it went; a tally per step; the sketch."""

    outcomes: list[Item | Gone | None]
    tallies: list[Tally]
    sketch: Any = None


def segments(steps: Sequence[Planned]) -> list[Segment]:
    """Runs of steps between those that must see all rows: such a step sketches at the end of one and judges in the next."""
    result: list[Segment] = []
    current: list[Planned] = []
    for step in steps:
        if step.step.looks_at_all:
            result.append(Segment(tuple(current), step))
            current = []
        current.append(step)
    return [*result, Segment(tuple(current))]


def in_chunks(
    items: Iterable[Passed], characters: Callable[[Passed], int], most_rows: int = CHUNK_ROWS
) -> Iterator[list[Passed]]:
    """The items in order, as many together as fill a chunk."""
    chunk: list[Passed] = []
    size = 0
    for item in items:
        more = characters(item)
        if chunk and (len(chunk) == most_rows or size + more > CHUNK_CHARACTERS):
            yield chunk
            chunk, size = [], 0
        chunk.append(item)
        size += more
    if chunk:
        yield chunk


class _Blank(Exception):
    """A change left nothing of a text."""


def carry_out(segment: Segment, chunk: Chunk) -> Done:
    """All steps of the segment on a chunk, one after the other, then the sketch. Raises what is no matter of a single row."""
    outcomes: list[Item | Gone | None] = [None] * len(chunk.items)
    tallies = []
    for planned in segment.steps:
        tally, begin = Tally(), time.perf_counter()
        for index in range(len(chunk.items)):
            if not isinstance(outcomes[index], Gone):
                _one_step(planned, chunk, index, outcomes, tally)
        tally.seconds = time.perf_counter() - begin
        tallies.append(tally)
    sketch, begin = None, time.perf_counter()
    if segment.sketched is not None and segment.sketches_here:
        left = [outcome or item for outcome, item in zip(outcomes, chunk.items, strict=True)]
        sketch = segment.sketched.step.sketch([item.joined() for item in left if isinstance(item, Item)])
        tallies.append(Tally(seconds=time.perf_counter() - begin))
    return Done(outcomes, tallies, sketch)


def _one_step(planned: Planned, chunk: Chunk, index: int, outcomes: list[Item | Gone | None], tally: Tally) -> None:
    earlier = outcomes[index]
    item = earlier if isinstance(earlier, Item) else chunk.items[index]
    size = sum(map(len, item.texts))
    tally.rows_in += 1
    tally.characters_in += size
    result = _judged(planned, chunk.first + index, item, tally, index)
    if isinstance(result, Gone):
        outcomes[index] = result
        tally.failed += result.failed
        if not result.failed:
            tally.dropped[result.rule] += 1
        return
    tally.rows_out += 1
    tally.characters_out += size if result is None else sum(map(len, result.texts))
    if result is not None:
        outcomes[index] = result
        tally.changed += 1


def _judged(planned: Planned, row: int, item: Item, tally: Tally, index: int) -> Item | Gone | None:
    """The row as it goes on, None when nothing changes, or why it goes. A step that fails on a row costs that row only."""
    try:
        result = _whole(planned, row, item, tally, index) if planned.whole else _each(planned, row, item, tally, index)
    except _Blank:
        result = Gone(planned.number, EMPTY, f"`{planned.use}` left nothing of a text", excerpt(item.joined()))
    except RowProblem as problem:
        detail = f"`{planned.use}` made it: {problem.detail}"
        result = Gone(planned.number, problem.rule, detail, excerpt(item.joined()), failed=True)
    except (UpliftError, MemoryError):
        raise
    except Exception as error:
        detail = f"`{planned.use}` failed: {type(error).__name__}: {error}"
        result = Gone(planned.number, "step_failed", detail, excerpt(item.joined()), failed=True)
    return None if isinstance(result, Gone) and not planned.may_drop else result


def _whole(planned: Planned, row: int, item: Item, tally: Tally, index: int) -> Item | Gone | None:
    old = item.joined()
    verdict = planned.step.judge(row, old)
    if verdict.text is None:
        return _gone(planned, verdict, old)
    if verdict.text == old:
        tally.changes.update(verdict.counts)  # what a step has seen and left
        return None
    if len(item.texts) == 1:
        return _changed(item, {0: verdict}, tally, index)
    parts = _shared_out(verdict.edits or edits_between(old, verdict.text, next(iter(verdict.counts), planned.use)), item)
    return _changed(item, parts, tally, index, verdict) if parts else None


def _each(planned: Planned, row: int, item: Item, tally: Tally, index: int) -> Item | Gone | None:
    verdicts: dict[int, Verdict] = {}
    for place, text in enumerate(item.texts):
        verdict = planned.step.judge(row, text)
        if verdict.text is None:
            return _gone(planned, verdict, text)
        if verdict.text != text:
            verdicts[place] = verdict
        else:
            tally.changes.update(verdict.counts)
    return _changed(item, verdicts, tally, index) if verdicts else None


def _gone(planned: Planned, verdict: Verdict, text: str) -> Gone:
    return Gone(planned.number, next(iter(verdict.counts), planned.use), verdict.detail, excerpt(text))


def _shared_out(edits: Sequence[Edit], item: Item) -> dict[int, Verdict]:
    """Edits of the joined texts as edits of each: what stood between two texts is nobody's."""
    result: dict[int, Verdict] = {}
    start = 0
    for place in item.said():
        text = item.texts[place]
        own, end = [], start + len(text)
        for edit in edits:
            low, high = max(edit.start, start), min(edit.end, end)
            if low < high or (low == high and edit.start == low and edit.new):
                new = edit.new if edit.start >= start else ""
                own.append(Edit(low - start, high - start, new, edit.rule))
        pieces, at = [], 0
        for edit in own:
            pieces += [text[at : edit.start], edit.new]
            at = edit.end
        if own:
            result[place] = Verdict("".join([*pieces, text[at:]]), edits=tuple(own))
        start = end + len(JOIN)
    return result


def _changed(item: Item, verdicts: dict[int, Verdict], tally: Tally, index: int, counted: Verdict | None = None) -> Item:
    """The row with changed texts. Raises _Blank and RowProblem before anything is counted."""
    texts = list(item.texts)
    for place, verdict in verdicts.items():
        assert verdict.text is not None
        if not verdict.text.strip():
            raise _Blank
        check_characters(verdict.text, "the text")
        texts[place] = verdict.text
    spans = item.spans
    if spans:
        verdict = verdicts[0]
        edits = verdict.edits if verdict.edits is not None else edits_between(item.texts[0], texts[0])
        spans = move_spans(spans, edits)
        tally.spans_cut += sum(new is None and old is not None for new, old in zip(spans, item.spans, strict=True))
    for verdict in [counted] if counted else verdicts.values():
        tally.changes.update(verdict.counts)
    for place, verdict in verdicts.items():
        tally.touched += _touched(index, item.texts[place], texts[place], verdict)
    return Item(texts, item.system, spans)


def _touched(index: int, old: str, new: str, verdict: Verdict) -> Iterator[Touched]:
    """Each rule that changed the text, with the text around its first change."""
    edits = verdict.edits or ()
    for rule, times in (verdict.counts or Counter(edit.rule for edit in edits)).items():
        at = next((place for place, edit in enumerate(edits) if edit.rule == rule), None)
        before = first_difference(old, new) if at is None else edits[at].start
        after = before + sum(len(edit.new) - (edit.end - edit.start) for edit in edits[:at]) if at else before
        yield Touched(index, rule, times, excerpt(old, before + 1), excerpt(new, after + 1))
