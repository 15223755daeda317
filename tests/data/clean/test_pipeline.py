"""The pipeline: no row is lost or made, the result is the same for any number of workers, memory stays bounded."""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings, strategies as st

from uplift.core.errors import DataError, ResourceError
from uplift.core.values import Origin
from uplift.data.clean.chunk import Planned
from uplift.data.clean.columns import Columns
from uplift.data.clean.output import Collected
from uplift.data.clean.pipeline import Layout, Outcome, Pipeline, Record
from uplift.data.clean.step import CleaningStep, Edit, Verdict, dropped, edited
from uplift.data.rows import BadRow

TEXT = Layout(Columns(("text",)))


# -- small steps -------------------------------------------------------------------------------------------------------
class Dots(CleaningStep):
    """Runs of dots become one."""

    def judge(self, row: int, text: str) -> Verdict:
        return edited(text, [Edit(m.start(), m.end(), ".", "dots") for m in re.finditer(r"\.{2,}", text)])


class Upper(CleaningStep):
    """Changes without saying where."""

    def judge(self, row: int, text: str) -> Verdict:
        return Verdict(text.upper(), {"upper": 1})


class Short(CleaningStep):
    def judge(self, row: int, text: str) -> Verdict:
        return dropped("short", f"{len(text)} characters") if len(text) < 8 else Verdict(text)


class Without(CleaningStep):
    """Takes a pattern out."""

    def __init__(self, pattern: str) -> None:
        self.pattern = re.compile(pattern)

    def judge(self, row: int, text: str) -> Verdict:
        return edited(
            text, [Edit(m.start(), m.end(), "", "without") for m in self.pattern.finditer(text) if m.end() > m.start()]
        )


class Same(CleaningStep):
    """Of equal texts the first stays."""

    looks_at_all: ClassVar[bool] = True

    def sketch(self, texts: Sequence[str]) -> list[int]:
        return [zlib.crc32(text.lower().encode()) for text in texts]

    def settle(self, sketches: Iterable[list[int]]) -> None:
        first: dict[int, int] = {}
        self.same = {}
        for row, value in enumerate(value for sketch in sketches for value in sketch):
            if first.setdefault(value, row) != row:
                self.same[row] = first[value]

    def judge(self, row: int, text: str) -> Verdict:
        return dropped("exact", f"same as row {self.same[row]}") if row in self.same else Verdict(text)


class Breaks(CleaningStep):
    def judge(self, row: int, text: str) -> Verdict:
        if "boom" in text:
            raise ValueError("boom")
        if "nul" in text:
            return Verdict(text + "\0", {"nul": 1})
        return Verdict(text)


class Refuses(CleaningStep):
    def judge(self, row: int, text: str) -> Verdict:
        raise DataError("no")


class Dies(CleaningStep):
    def judge(self, row: int, text: str) -> Verdict:
        if multiprocessing.parent_process() is not None and "die" in text:
            os._exit(9)
        return Verdict(text)


def planned(*steps: CleaningStep, each: bool = False, may_drop: bool = True) -> list[Planned]:
    return [
        Planned(number, type(step).__name__.lower(), step, whole=not each, may_drop=may_drop)
        for number, step in enumerate(steps)
    ]


@dataclass
class Result:
    outcome: Outcome
    out: Collected

    @property
    def texts(self) -> list[str]:
        return [row.values["text"] for row in self.out.rows]


def run(
    steps: Sequence[Planned], rows: Iterable[dict[str, Any] | BadRow], layout: Layout = TEXT, workers: int = 1, chunk: int = 500
) -> Result:
    records = (
        row if isinstance(row, BadRow) else Record(0, row, Origin("rows.jsonl", line)) for line, row in enumerate(rows, start=1)
    )
    out = Collected()
    return Result(Pipeline(steps, [layout], workers=workers, chunk_rows=chunk).run(records, out), out)


def texts(*values: str) -> list[dict[str, Any]]:
    return [{"text": value, "other": {"n": index}} for index, value in enumerate(values)]


# -- laws --------------------------------------------------------------------------------------------------------------
WORDS = st.lists(st.sampled_from(["good..", "film", "boom", "nul", "x", "a...b", "Same", "same", "é", " "]), max_size=4)
STEPS = st.lists(st.sampled_from([Dots, Upper, Short, Same, Breaks]), max_size=6)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(WORDS.map(" ".join), max_size=40), kinds=STEPS, bad=st.integers(0, 3), chunk=st.integers(1, 9))
def test_every_row_is_kept_dropped_or_quarantined(
    rows: list[str], kinds: list[type[CleaningStep]], bad: int, chunk: int
) -> None:
    bad_rows = [BadRow(Origin("rows.jsonl", 900 + number), "json", "broken", 1, "{") for number in range(bad)]
    found = run(planned(*(kind() for kind in kinds)), [*texts(*rows), *bad_rows], chunk=chunk)
    outcome, out = found.outcome, found.out
    assert outcome.rows_in == len(rows) + bad
    assert (outcome.rows_kept, outcome.rows_dropped, outcome.rows_quarantined) == (
        len(out.rows),
        len(out.dropped),
        len(out.bad),
    )
    lines = [row.origin.line for row in [*out.rows, *out.dropped, *out.bad]]
    assert sorted(lines) == sorted([*range(1, len(rows) + 1), *(900 + number for number in range(bad))])
    assert [row.origin.line for row in out.rows] == sorted(row.origin.line for row in out.rows)
    assert all(row.values["other"] == {"n": row.origin.line - 1} for row in out.rows)
    flow = [step.rows_in for step in outcome.steps]
    assert flow[1:] == [step.rows_out for step in outcome.steps][: len(flow) - 1] or not flow


@pytest.mark.parametrize(("workers", "chunk"), [(1, 1), (1, 7), (2, 7), (3, 50)])
def test_the_result_is_the_same_for_any_number_of_workers(workers: int, chunk: int) -> None:
    kinds = [f"row {n}{'.' * (n % 4)} of many{' words' * (n % 7)}" for n in range(61)]
    rows = texts(*(kinds[n % 61] for n in range(400)), "boom", "x")
    steps = [Dots, Breaks, Same, Short, Same, Upper]
    one = run(planned(*(step() for step in steps)), rows)
    other = run(planned(*(step() for step in steps)), rows, workers=workers, chunk=chunk)
    assert one.outcome.rows_dropped > 200 and one.outcome.rows_quarantined == 1
    assert other.out == one.out
    assert other.outcome.steps == one.outcome.steps


def test_what_came_out_goes_through_unchanged() -> None:
    rows = texts(*(f"row {number % 61}... of many, is it not" for number in range(200)))
    once = run(planned(Dots(), Short(), Same()), rows)
    twice = run(planned(Dots(), Short(), Same()), [dict(row.values) for row in once.out.rows])
    assert twice.texts == once.texts and twice.outcome.rows_dropped == 0 and not any(s.changed for s in twice.outcome.steps)


def test_a_row_that_was_the_same_as_another_is_named_by_its_place() -> None:
    found = run(planned(Short(), Same()), texts("x", "the first one", "THE FIRST ONE"))
    assert [(row.use, row.rule, row.detail) for row in found.out.dropped] == [
        ("short", "short", "1 characters"),
        ("same", "exact", "same as rows.jsonl:2"),
    ]


# -- failures ----------------------------------------------------------------------------------------------------------
def test_a_step_that_fails_on_a_row_costs_that_row_only() -> None:
    found = run(planned(Breaks(), Upper()), texts("one", "boom", "two", "nul"))
    assert found.texts == ["ONE", "TWO"]
    assert [(bad.rule, bad.detail) for bad in found.out.bad] == [
        ("step_failed", "`breaks` failed: ValueError: boom"),
        ("nul", "`breaks` made it: `the text` holds a NUL character"),
    ]
    assert found.outcome.steps[0].failed == 2 and found.outcome.reasons == {"step_failed": 1, "nul": 1}


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_no_matter_of_a_row_stops_everything(workers: int) -> None:
    with pytest.raises(DataError, match="no"):
        run(planned(Refuses()), texts("one", "two"), workers=workers, chunk=1)


def test_a_worker_that_dies_is_one_clear_error() -> None:
    with pytest.raises(ResourceError, match="a worker process died"):
        run(planned(Dies()), texts(*["live"] * 20, "die", *["live"] * 20), workers=2, chunk=1)
    assert not multiprocessing.active_children()


def test_an_interruption_leaves_no_process_behind() -> None:
    def rows() -> Iterable[dict[str, Any]]:
        yield from texts(*["live"] * 20)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(planned(Upper()), rows(), workers=2, chunk=1)
    assert not multiprocessing.active_children()


def test_rows_without_text_are_quarantined() -> None:
    found = run(planned(Upper()), [{"text": "a"}, {"text": " \n"}, {"text": None}, {"text": 3}, {}])
    assert found.texts == ["A"] and [bad.rule for bad in found.out.bad] == ["empty_text"] * 4


def test_a_change_that_leaves_nothing_drops_the_row() -> None:
    found = run(planned(Without("[a-z]+")), texts("abc", "1 abc"))
    assert found.texts == ["1 "] and [row.rule for row in found.out.dropped] == ["empty"]


def test_other_parts_lose_no_row() -> None:
    steps = planned(Short(), Without("[a-z]+"), Upper(), Breaks(), may_drop=False)
    found = run(steps, texts("abc", "boom 1", "x2"))
    assert found.texts == ["ABC", " 1", "2"] and not found.out.dropped and not found.out.bad


# -- rows of several texts ---------------------------------------------------------------------------------------------
def chat(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content, "weight": 1} for role, content in turns], "id": 7}


def test_changes_go_to_the_turn_they_were_made_in() -> None:
    row = chat(("system", "be kind..."), ("user", "hi..."), ("assistant", "hello"), ("user", ""))
    found = run(planned(Dots(), each=True), [row], Layout(Columns(("messages",))))
    assert found.out.rows[0].values == chat(("system", "be kind."), ("user", "hi."), ("assistant", "hello"), ("user", ""))
    assert row == chat(("system", "be kind..."), ("user", "hi..."), ("assistant", "hello"), ("user", ""))


def test_what_looks_at_a_row_sees_all_turns_but_the_system_s() -> None:
    rows = [
        chat(("system", "the same for all"), ("user", "hi"), ("assistant", "hello")),
        chat(("system", "another"), ("user", "hi"), ("assistant", "hello")),
        chat(("system", "the same for all"), ("user", "ho"), ("assistant", "hello")),
    ]
    found = run(planned(Same()), rows, Layout(Columns(("messages",))))
    assert [row.origin.line for row in found.out.rows] == [1, 3]


@pytest.mark.parametrize("step", [Dots(), Upper()])
def test_a_change_of_the_whole_row_finds_its_way_into_each_text(step: CleaningStep) -> None:
    row = {"prompt": "wait... what", "completion": "no... never...", "n": 1}
    found = run(planned(step), [row], Layout(Columns(("prompt", "completion"))))
    expected = {"prompt": "wait. what", "completion": "no. never.", "n": 1}
    if isinstance(step, Upper):
        expected = {"prompt": "WAIT... WHAT", "completion": "NO... NEVER...", "n": 1}
    assert found.out.rows[0].values == expected


# -- spans -------------------------------------------------------------------------------------------------------------
def test_spans_move_along_and_those_that_are_cut_are_counted() -> None:
    text = "So... Anna... met Bob"
    spans = [[6, 10, "person"], {"start": 18, "end": 21, "label": "person"}, [4, 8, "cut"], [10, 13, "dots"]]
    layout = Layout(Columns(("text",)), ("entities",))
    found = run(planned(Dots()), [{"text": text, "entities": spans}], layout)
    values = found.out.rows[0].values
    assert values["text"] == "So. Anna. met Bob"
    assert values["entities"] == [[4, 8, "person"], {"start": 14, "end": 17, "label": "person"}, [8, 9, "dots"]]
    assert found.outcome.steps[0].spans_cut == 1


def test_spans_that_are_none_put_the_row_aside() -> None:
    rows = [{"text": "abc", "s": value} for value in ([[0, 9]], [["a", "b"]], "x", [{"start": 1}], [[2, 1]], None, [])]
    found = run(planned(Upper()), rows, Layout(Columns(("text",)), ("s",)))
    assert found.texts == ["ABC"] * 2 and [bad.rule for bad in found.out.bad] == ["span"] * 5


# -- what is told ------------------------------------------------------------------------------------------------------
def test_every_changed_row_is_listed_with_what_stood_there_before_and_after() -> None:
    found = run(planned(Dots()), texts(*(f"{'x' * number}...y" for number in range(30))), chunk=4)
    assert [(row.origin.line, row.rule, row.times) for row in found.out.altered] == [
        (number, "dots", 1) for number in range(1, 31)
    ]
    assert (found.out.altered[1].before, found.out.altered[1].after) == ("x...y", "x.y")
    assert found.outcome.steps[0].changes == {"dots": 30} and found.outcome.steps[0].changed == 30


def test_characters_are_counted() -> None:
    outcome = run(planned(Dots(), Short()), texts("a...", "a longer text...")).outcome
    assert (outcome.characters_in, outcome.characters_out) == (20, 14)
    assert [(step.characters_in, step.characters_out) for step in outcome.steps] == [(20, 16), (16, 14)]


# -- memory ------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """300 MB of rows through two passes in a process of its own: most of what it holds is Python and its libraries."""
    script = f"""
        import resource, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_pipeline import Dots, Record, Same, TEXT, planned
        from uplift.core.values import Origin
        from uplift.data.clean.pipeline import Pipeline
        class Nothing:
            def kept(self, record): pass
            removed = quarantined = changed = kept
        rows = (Record(0, {{"text": f"{{n % 50_000}}..." + "x" * 3000}}, Origin("r", n)) for n in range(int(sys.argv[1])))
        outcome = Pipeline(planned(Dots(), Same()), [TEXT]).run(rows, Nothing())
        print(outcome.rows_kept, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
    peaks = {}
    for count in (1_000, 100_000):
        command = [sys.executable, "-c", textwrap.dedent(script), str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "TMPDIR": str(tmp_path)})
        kept, peaks[count] = map(int, done.stdout.split())
        assert kept == min(count, 50_000)
    assert peaks[100_000] - peaks[1_000] < 60_000, peaks  # KiB: numbers and hashes of rows, not 300 MB of texts
