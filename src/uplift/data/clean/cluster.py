"""`data.prepare` on a cluster: its steps as stages for datatrove, whose executors know Slurm, Ray and local processes.

A pass ends where a step must see all rows. Its tasks leave what is still there, with a sketch of it, in a folder that all
machines see; then one task decides, and the tasks of the next pass judge. The documents that stay, their order (by tasks) and
the account are those of one process on the same documents.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from uplift.core.errors import ResourceError, UsageError
from uplift.core.prepare_section import Step
from uplift.data.clean.chunk import Chunk, Gone, Item, Planned, Segment, Tally, carry_out, in_chunks, segments
from uplift.data.clean.pipeline import Outcome, account_of
from uplift.data.clean.spool import from_line, to_line
from uplift.data.clean.step import joined
from uplift.data.clean.steps import plan_steps
from uplift.data.optional import optional
from uplift.data.rows import RowProblem, check_characters, excerpt

with optional("cleaning on a cluster", "cluster"):
    from datatrove.data import Document, Media
    from datatrove.io import get_datafolder
    from datatrove.pipeline.base import PipelineStep
    from datatrove.pipeline.readers.base import BaseReader
    from datatrove.pipeline.writers.disk_base import DiskWriter

READING = "reading"
"""In place of a step's name: documents that cannot be worked on."""


@dataclass(frozen=True)
class Stage:
    """Work for one executor: ``pipeline`` in ``tasks`` tasks, after the stage before it."""

    pipeline: list[PipelineStep]
    tasks: int


def stages(
    sections: Sequence[Step], *, reader: BaseReader, writer: DiskWriter, folder: str, tasks: int, base_dir: Path = Path()
) -> list[Stage]:
    """The steps of `data.prepare` as stages, each to be run by a datatrove executor that depends on the one before.

    ``folder``: between the stages, and in the end the removed documents (``removed/*.jsonl``) and the account; a path or any
    address that datatrove writes to. Raises RecipeError: a step that cannot work, `quality` among them (it opens a model).
    """
    last = len(segments(plan_steps(sections, base_dir))) - 1
    made = []
    for number in range(last + 1):
        work = Pass(sections, number, folder, base_dir)
        made.append(Stage([*([reader] if number == 0 else []), work, *([writer] if number == last else [])], tasks))
        if number < last:
            made.append(Stage([Decision(sections, number, folder, base_dir, tasks)], 1))
    return made


def account(folder: str) -> Outcome:
    """What became of all documents, all tasks together. Raises ResourceError when stages are missing."""
    kept = get_datafolder(folder)
    parts = [_part(json.loads(_read(kept, name))) for name in kept.list_files("accounts")]
    if not parts:
        raise ResourceError(f"`{folder}` holds no account", why="no stage has run", fix="run the stages first")
    outcome, tallies = Outcome(), dict[int, tuple[str, Tally]]()
    for part in parts:
        for name in ("rows_in", "rows_kept", "rows_dropped", "rows_quarantined", "characters_in", "characters_out"):
            setattr(outcome, name, getattr(outcome, name) + getattr(part, name))
        for rule, count in part.reasons.items():
            outcome.reasons[rule] = outcome.reasons.get(rule, 0) + count
        for number, (use, tally) in part.tallies.items():
            tallies.setdefault(number, (use, Tally()))[1].add(tally)
    if outcome.rows_in != outcome.rows_kept + outcome.rows_dropped + outcome.rows_quarantined:
        why = f"{outcome.rows_in} documents came in, not all of them are through"
        raise ResourceError(f"the account in `{folder}` is not whole", why=why, fix="wait for the last stage to end")
    return account_of(outcome, [tallies[number] for number in sorted(tallies)])


@dataclass
class _Part(Outcome):
    """What one task did in one pass; ``tallies`` by the number of the step."""

    tallies: dict[int, tuple[str, Tally]] = field(default_factory=dict)


def _part(content: dict[str, Any]) -> _Part:
    """From its JSON."""
    tallies = {}
    for number, (use, tally) in content.pop("tallies").items():
        tally |= {name: Counter(tally[name]) for name in ("dropped", "changes")}
        tallies[int(number)] = (use, Tally(**tally))
    return _Part(**content, tallies=tallies)


class _Stepped(PipelineStep):  # type: ignore[misc]
    """What the steps of both kinds know; travels to the tasks."""

    type = "Uplift"

    def __init__(self, sections: Sequence[Step], number: int, folder: str, base_dir: Path) -> None:
        super().__init__()
        self.sections, self.number, self.base_dir = list(sections), number, base_dir
        self.folder = get_datafolder(folder)

    def planned(self) -> list[Planned]:
        """The steps, made anew in the task: what they hold is not sent."""
        return plan_steps(self.sections, self.base_dir)


class Pass(_Stepped):
    """One task's documents through the steps up to the next that must see all rows."""

    name = "pass"

    def run(self, data: Iterable[Document] | None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """The documents that stay after the last pass; earlier passes leave theirs in the folder."""
        segment, first = self._prepared(rank, world_size)
        part = _Part(tallies={planned.number: (planned.use, Tally()) for planned in segment.counted})
        sketches, left = list[tuple[Any, ...]](), 0
        place = f"{self.number}/{rank:05d}"
        with ExitStack() as stack:
            log = stack.enter_context(self.folder.open(f"removed/{self.number}-{rank:05d}.jsonl", "wb"))
            waiting = stack.enter_context(self.folder.open(f"waiting/{place}.jsonl", "wb")) if segment.sketched else None
            documents = self._readable(data or (), part, log) if self.number == 0 else self._waiting(rank)
            for chunk in in_chunks(documents, lambda document: len(document.text)):
                work = Chunk(first, [Item([document.text]) for document in chunk])
                kept, sketch = self._carried_out(segment, work, chunk, part, log)
                first += len(chunk)
                if waiting is None:
                    part.rows_kept += len(kept)
                    part.characters_out += sum(len(document.text) for document in kept)
                    yield from kept
                else:
                    waiting.writelines(_line(document) for document in kept)
                    sketches.append(sketch)
                    left += len(kept)
        if segment.sketched is not None:
            together = joined(segment.sketched.step.sketch([]), sketches)
            _save(self.folder, f"sketches/{place}.npz", {"rows": np.array(left), **together._asdict()})
        with self.folder.open(f"accounts/{self.number}-{rank:05d}.json", "w") as stream:
            json.dump(part, stream, default=vars)

    def _prepared(self, rank: int, world_size: int) -> tuple[Segment, int]:
        """The steps of this pass, the first of them decided, and the running number of the task's first document."""
        planned = self.planned()
        if self.number == 0:
            return segments(planned)[0], 0
        decision = _arrays(self.folder, f"decisions/{self.number - 1}.npz")
        firsts = decision.pop("firsts").tolist()
        if len(firsts) != world_size:
            raise UsageError(
                f"pass {self.number} runs in {world_size} tasks, the pass before it ran in {len(firsts)}",
                fix="give all passes the number of tasks that `stages` was given",
            )
        segment = segments(planned)[self.number]
        segment.steps[0].step.decide(decision)
        return segment, firsts[rank]

    def _readable(self, data: Iterable[Document], part: _Part, log: Any) -> Iterator[Document]:
        for document in data:
            part.rows_in += 1
            try:
                if not document.text.strip():
                    raise RowProblem("empty_text", "there is no text")
                check_characters(document.text, "the text")
            except RowProblem as problem:
                gone = Gone(-1, problem.rule, problem.detail, excerpt(document.text), failed=True)
                self._remove(log, document, READING, gone, part)
                continue
            part.characters_in += len(document.text)
            yield document

    def _waiting(self, rank: int) -> Iterator[Document]:
        with self.folder.open(f"waiting/{self.number - 1}/{rank:05d}.jsonl", "rb") as waiting:
            for name, text, metadata, media in map(from_line, waiting):
                yield Document(text, name, [Media(**each) for each in media], metadata)

    def _carried_out(
        self, segment: Segment, chunk: Chunk, documents: Sequence[Document], part: _Part, log: Any
    ) -> tuple[list[Document], Any]:
        """The documents that stay, and their sketch; counted, and the others logged."""
        with self.track_time():
            done = carry_out(segment, chunk)
        for planned, tally in zip(segment.counted, done.tallies, strict=True):
            tally.touched.clear()
            part.tallies[planned.number][1].add(tally)
        uses = {planned.number: planned.use for planned in segment.steps}
        kept = []
        for document, outcome in zip(documents, done.outcomes, strict=True):
            if isinstance(outcome, Gone):
                self._remove(log, document, uses[outcome.number], outcome, part)
                continue
            if outcome is not None:
                document.text = outcome.texts[0]
            kept.append(document)
            self.stat_update("forwarded")
        return kept, done.sketch

    def _remove(self, log: Any, document: Document, use: str, gone: Gone, part: _Part) -> None:
        if gone.failed:
            part.rows_quarantined += 1
            part.reasons[gone.rule] = part.reasons.get(gone.rule, 0) + 1
        else:
            part.rows_dropped += 1
        self.stat_update("dropped", f"dropped_{gone.rule}")
        told = {"id": document.id, "step": use, "rule": gone.rule, "detail": gone.detail, "excerpt": gone.excerpt}
        log.write(json.dumps(told, ensure_ascii=False).encode("utf-8", "replace") + b"\n")


class Decision(_Stepped):
    """The one task between two passes: from all sketches, what the step will say of each document."""

    name = "decision"

    def __init__(self, sections: Sequence[Step], number: int, folder: str, base_dir: Path, tasks: int) -> None:
        super().__init__(sections, number, folder, base_dir)
        self.tasks = tasks

    def run(self, data: None = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Nothing goes on from here: the decision is left in the folder."""
        step = segments(self.planned())[self.number].sketched
        assert step is not None
        lengths: list[int] = []

        def sketches() -> Iterator[Any]:
            for task in range(self.tasks):
                arrays = _arrays(self.folder, f"sketches/{self.number}/{task:05d}.npz")
                lengths.append(int(arrays.pop("rows")))
                yield step.step.sketches(**arrays)

        with self.track_time():
            step.step.settle(sketches())
        firsts = np.array(list(accumulate(lengths, initial=0))[:-1])
        _save(self.folder, f"decisions/{self.number}.npz", {"firsts": firsts, **step.step.decision()})
        return iter(())


def _line(document: Document) -> bytes:
    media = [asdict(each) for each in document.media]
    return to_line([document.id, document.text, document.metadata, media]) + b"\n"


def _save(folder: Any, name: str, arrays: Mapping[str, np.ndarray]) -> None:
    held = io.BytesIO()  # numpy seeks, and not every store can
    np.savez(held, allow_pickle=False, **arrays)
    with folder.open(name, "wb") as stream:
        stream.write(held.getbuffer())


def _arrays(folder: Any, name: str) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(_read(folder, name))) as found:
        return dict(found)


def _read(folder: Any, name: str) -> bytes:
    try:
        with folder.open(name, "rb") as stream:
            return bytes(stream.read())
    except FileNotFoundError as error:
        fix = "run every stage to its end before the next one (`depends` of datatrove's executors)"
        raise ResourceError(
            f"`{name}` is not in the folder of this cleaning", why="an earlier task has not ended", fix=fix
        ) from error
