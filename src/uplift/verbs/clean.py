"""``uplift data clean``: rows through the steps of `data.prepare`, into a folder with an account of every change."""

from __future__ import annotations

import importlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from uplift.core.errors import DataError, UsageError
from uplift.core.prepare_section import Decontaminate, Dedup, Filter, Html, Language, Pii, Quality, Repair, Step
from uplift.core.source_section import AnySource, FileSource
from uplift.core.storage import commit_directory, write_file
from uplift.data.clean.card import Card, CardFile, CardSource, make_card
from uplift.data.clean.chunk import JOIN
from uplift.data.clean.columns import LOOKED_AT, choose_columns, text_at
from uplift.data.clean.filter import RuleFilter
from uplift.data.clean.html import kind_of_html
from uplift.data.clean.output import Folder, OutputFormat
from uplift.data.clean.pipeline import Changed, Layout, Outcome, Outlet, Pipeline, Record, Removed
from uplift.data.clean.steps import QualityMaker, advice, check_texts, plan_steps
from uplift.data.clean.workers import CAN_FORK
from uplift.data.packages import named_source
from uplift.data.rows import NAME_ENCODING, BadRow, Row
from uplift.data.sources import Stream, stream_source

Tell = Callable[[str], None]
SHOWN = 2
"""Examples per step and rule that are kept for the terminal."""
TRIED = 1000
TRIED_CHARACTERS = 2**21
"""Kept rows, and characters of them, that the filters are tried on when they are off."""
MOST_BEGUN = 10_000
MOST_LOOKED_AT = 2**24
"""Rows, good and bad, and characters of text, that are read to see what a source looks like."""
PRIVATE = "`changed.jsonl` and `removed.jsonl` show texts as they were, personal data too: do not pass them on with the rows"
STEP_NAMES = tuple(kind.model_fields["use"].default for kind in get_args(Step))
SAME_FORMAT: dict[str, OutputFormat] = {"csv": "csv", "tsv": "csv", "parquet": "parquet"}
"""What is read -> what is written by default; everything else becomes JSON lines."""


@dataclass(frozen=True)
class Cleaned:
    """What was done. ``path`` None: a dry run. ``seconds``: whole time; the others as in ``Outcome``."""

    path: Path | None
    card: Card
    removed: tuple[Removed, ...]
    changed: tuple[Changed, ...]
    quarantined: tuple[BadRow, ...]
    seconds: float
    step_seconds: tuple[float, ...]
    other_seconds: Mapping[str, float]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON values: the card, where it lies, the speed and some examples."""
        shown: dict[str, Sequence[Removed | Changed | BadRow]] = {
            "removed": self.removed,
            "changed": self.changed,
            "quarantined": self.quarantined,
        }
        return {
            "path": None if self.path is None else str(self.path),
            "seconds": self.seconds,
            "step_seconds": list(self.step_seconds),
            "other_seconds": dict(self.other_seconds),
            "notes": list(self.notes),
            "examples": {name: [row.as_json() for row in rows] for name, rows in shown.items()},
            "card": self.card.model_dump(mode="json"),
        }


@dataclass
class _Source:
    """A source with the look of its first rows; ``rows`` can be gone through once."""

    name: str
    stream: Stream
    layout: Layout
    first: list[Row]
    rows: Iterator[Row | BadRow]

    def records(self, number: int) -> Iterator[Record | BadRow]:
        for row in self.rows:
            yield Record(number, row.values, row.origin) if isinstance(row, Row) else row

    def texts(self) -> list[str]:
        return [text_at(row.values, slot) for row in self.first for slot, _ in self.layout.columns.slots(row.values)]

    def on_card(self) -> CardSource:
        stream = self.stream
        columns = self.layout.columns.names
        return CardSource(name=self.name, format=stream.format, rows=stream.rows_in, columns=columns, sha256=stream.sha256)


@dataclass
class _Watched:
    """Passes everything on, and keeps the first examples and texts for the terminal."""

    layouts: Sequence[Layout]
    inner: Outlet | None = None
    removed_rows: list[Removed] = field(default_factory=list)
    changes: list[Changed] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    held: int = 0
    seen: Counter[tuple[str, str]] = field(default_factory=Counter)

    def kept(self, record: Record) -> None:
        if len(self.texts) < TRIED and self.held < TRIED_CHARACTERS:
            slots = self.layouts[record.source].columns.slots(record.values)
            self.texts.append(JOIN.join(text_at(record.values, slot) for slot, system in slots if not system))
            self.held += len(self.texts[-1])
        if self.inner is not None:
            self.inner.kept(record)

    def removed(self, row: Removed) -> None:
        self._show(self.removed_rows, row, (row.use, row.rule))
        if self.inner is not None:
            self.inner.removed(row)

    def quarantined(self, row: BadRow) -> None:
        self._show(self.bad, row, ("reading", row.rule))
        if self.inner is not None:
            self.inner.quarantined(row)

    def changed(self, row: Changed) -> None:
        self._show(self.changes, row, (row.use, f"{row.rule}, changed"))
        if self.inner is not None:
            self.inner.changed(row)

    def _show(self, rows: list[Any], row: Any, key: tuple[str, str]) -> None:
        self.seen[key] += 1
        if self.seen[key] <= SHOWN:
            rows.append(row)


def clean(
    sources: Sequence[str],
    output: Path | None,
    steps: Sequence[Step] | None = None,
    *,
    languages: Sequence[str] = (),
    against: Sequence[str] = (),
    base_dir: Path = Path(),
    columns: Sequence[str] = (),
    spans: Sequence[str] = (),
    encoding: str | None = None,
    format: OutputFormat | None = None,
    workers: int = 1,
    tell: Tell = lambda text: None,
) -> Cleaned:
    """Clean the rows of ``sources`` into the new folder ``output``; None: only report what would happen.

    ``steps`` None: those of ``default_steps``. ``languages`` and ``against`` (evaluation sets) ask for a step more.
    ``columns``: those with texts (found when none is named); ``spans``: those with labelled spans of the one text;
    ``encoding``: that of the sources. Paths inside steps start at ``base_dir``. Raises UsageError, RecipeError, DataError and
    ResourceError; nothing is left behind then.
    """
    if output is not None and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} exists", where="--output", fix="give the name of a new folder")
    begin = time.perf_counter()
    looked = [_look(name, columns, spans, encoding) for name in sources]
    unasked = steps is None
    steps, notes = default_steps([text for each in looked for text in each.texts()]) if steps is None else (steps, [])
    job = _Job(looked, with_asked(steps, languages, against, base_dir), base_dir, workers, tell)
    found = job.into(output, format or _format(looked)) if output is not None else job.dry()
    notes = [*(note for each in looked for note in each.stream.notes), *notes]
    if workers > 1 and not CAN_FORK:
        notes = [*notes, "this system cannot fork processes: one did all the work"]
    if unasked:
        notes = [*notes, tried_filters(job.watched.texts)]
    if not_utf8 := found.outcome.reasons.get("utf8"):
        notes = [*notes, f"{not_utf8:,} rows are no text in the encoding that their file was read in: {NAME_ENCODING}"]
    watched = job.watched
    return Cleaned(
        output,
        found.card,
        tuple(watched.removed_rows),
        tuple(watched.changes),
        tuple(watched.bad),
        time.perf_counter() - begin,
        found.outcome.seconds,
        found.outcome.other_seconds,
        (*found.card.notes, *notes),
    )


@dataclass(frozen=True)
class _Found:
    card: Card
    outcome: Outcome


class _Job:
    """One cleaning, made before the first row is read as a whole."""

    def __init__(self, looked: Sequence[_Source], steps: Sequence[Step], base_dir: Path, workers: int, tell: Tell) -> None:
        for each in looked:
            check_texts(steps, each.layout.columns, each.first)
        self._looked, self._steps, self._workers, self._tell = looked, steps, workers, tell
        self._planned = plan_steps(steps, base_dir, quality=_quality(steps))
        self.watched = _Watched([source.layout for source in looked])

    def dry(self) -> _Found:
        """Carry everything out and write nothing."""
        outcome = self._carry_out(None)
        return _Found(self._card(outcome, None), outcome)

    def into(self, output: Path, format: OutputFormat) -> _Found:
        """Carry everything out; the folder appears when it is complete."""
        found: list[_Found] = []

        def write(folder: Path) -> None:
            with Folder(folder, format, folder) as files:
                self.watched.inner = files
                outcome = self._carry_out(folder)
                file = CardFile(name=files.name, rows=files.rows, sha256=files.finish())
            card = self._card(outcome, file)
            write_file(folder / "card.json", card.to_bytes())
            write_file(folder / "card.md", card.to_markdown())
            found.append(_Found(card, outcome))

        commit_directory(output, write, {"steps": [step.use for step in self._steps]})
        return found[0]

    def _carry_out(self, scratch: Path | None) -> Outcome:
        pipeline = Pipeline(self._planned, self.watched.layouts, workers=self._workers, scratch=scratch, tell=self._tell)
        outcome = pipeline.run((row for number, each in enumerate(self._looked) for row in each.records(number)), self.watched)
        if not outcome.rows_kept:
            raise _nothing_left(outcome)
        return outcome

    def _card(self, outcome: Outcome, file: CardFile | None) -> Card:
        notes = [*advice(self._steps), *([PRIVATE] if any(isinstance(step, Pii) for step in self._steps) else [])]
        return make_card([each.on_card() for each in self._looked], self._steps, outcome, file, notes)


# -- which steps -------------------------------------------------------------------------------------------------------
def default_steps(texts: Sequence[str]) -> tuple[list[Step], list[str]]:
    """What is done when nothing is asked for: repair, PII replaced, one of equal and nearly equal rows; markup off where the
    first texts show some. Filters that were made for web English stay off: they would drop code and short texts unasked.
    """
    marked = sum(bool(kind_of_html(text)) for text in texts)
    steps: list[Step] = [Repair(), Pii(), Dedup()]
    if not marked:
        return steps, []
    return [Html(), *steps], [f"{marked} of the first {len(texts)} texts hold HTML: `html` takes the markup off"]


def named_steps(names: Sequence[str], languages: Sequence[str] = ()) -> list[Step]:
    """Steps by their names, in this order, with default settings. Raises UsageError for a name that is none or needs more."""
    return [_step(name, {"keep": list(languages)} if name == "language" and languages else {}) for name in names]


def with_asked(steps: Sequence[Step], languages: Sequence[str], against: Sequence[str], base_dir: Path) -> list[Step]:
    """``steps`` with a `language` and a `decontaminate` step where options ask for them; ``against`` starts where we are."""
    result = list(steps)
    if languages and not any(isinstance(step, Language) for step in steps):
        at = next((index for index, step in enumerate(result) if isinstance(step, Dedup)), len(result))
        result.insert(at, _step("language", {"keep": list(languages)}))
    if against:
        at = next((index for index, step in enumerate(result) if isinstance(step, Decontaminate)), len(result))
        own = result[at] if at < len(result) else Decontaminate()
        assert isinstance(own, Decontaminate)
        more = [_seen_from(base_dir, named_source(each)) for each in against]
        result[at : at + 1] = [own.model_copy(update={"against": [*own.against, *more]})]
    return result


def _seen_from(base_dir: Path, source: AnySource) -> AnySource:
    if not isinstance(source, FileSource) or base_dir == Path():
        return source
    return source.model_copy(update={"path": os.path.relpath(source.path, base_dir)})


def _step(name: str, options: dict[str, Any]) -> Step:
    kinds = {kind.model_fields["use"].default: kind for kind in get_args(Step)}
    if name not in kinds:
        raise UsageError(f"there is no step `{name}`", where="--steps", fix=f"one of: {', '.join(STEP_NAMES)}")
    try:
        step: Step = kinds[name].model_validate({"use": name, **options})
    except ValidationError as error:
        fixes = {"language": "give `--language en`", "quality": "write it into a file for `--recipe`"}
        why = error.errors()[0]["msg"]
        raise UsageError(f"`{name}` needs more to be said", where="--steps", why=why, fix=fixes.get(name, "")) from error
    return step


def _quality(steps: Sequence[Step]) -> QualityMaker | None:
    """What opens models, loaded only where a step asks: everything else starts without torch."""
    if not any(isinstance(step, Quality) for step in steps):
        return None
    maker: QualityMaker = importlib.import_module("uplift.learn.quality").quality_step
    return maker


# -- what is there -----------------------------------------------------------------------------------------------------
def _look(name: str, columns: Sequence[str], spans: Sequence[str], encoding: str | None) -> _Source:
    stream = stream_source(named_source(name, encoding), Path())
    rows = iter(stream)
    begun = list(_begun(rows))
    first = [row for row in begun if isinstance(row, Row)]
    layout = Layout(choose_columns(first, columns), tuple(spans))
    if spans and len(layout.columns.names) > 1:
        fix = f"name one of {', '.join(layout.columns.names)} with `--column`"
        raise UsageError("spans belong to one text, and there are several", where="--spans", fix=fix)
    return _Source(name, stream, layout, first, chain(begun, rows))


def _begun(rows: Iterator[Row | BadRow]) -> Iterator[Row | BadRow]:
    """The first rows, few enough to be held: until ``LOOKED_AT`` good ones, or enough text."""
    good = size = 0
    for row in islice(rows, MOST_BEGUN):
        yield row
        if isinstance(row, Row):
            good += 1
            size += sum(len(value) for value in row.values.values() if isinstance(value, str))
        if good == LOOKED_AT or size > MOST_LOOKED_AT:
            return


def _format(sources: Sequence[_Source]) -> OutputFormat:
    found = {SAME_FORMAT.get(source.stream.format, "jsonl") for source in sources}
    only: OutputFormat = found.pop() if len(found) == 1 else "jsonl"
    return only


def _nothing_left(outcome: Outcome) -> DataError:
    told = [f"{count:,} by `{step.use}` ({rule})" for step in outcome.steps for rule, count in step.dropped.items()]
    told += [f"{count:,} quarantined ({rule})" for rule, count in outcome.reasons.items()]
    fix = "loosen or remove a step; `--dry-run` with fewer `--steps` shows which"
    return DataError("no row is left", why=", ".join(told), fix=fix)


def tried_filters(texts: Sequence[str]) -> str:
    """What the filters, which are off, would do to the first rows that were kept."""
    step = RuleFilter(Filter())
    rules: Counter[str] = Counter()
    for row, text in enumerate(texts):
        verdict = step.judge(row, text)
        if verdict.text is None:
            rules.update(verdict.counts)
    share = sum(rules.values()) / max(1, len(texts))
    told = f"the web filters are off; they would drop {share:.0%} of the first {len(texts):,} kept rows"
    most = ", ".join(f"{rule} {count:,}" for rule, count in rules.most_common(3))
    return f"{told} ({most}); `--steps repair,pii,filter,dedup` applies them" if rules else told
