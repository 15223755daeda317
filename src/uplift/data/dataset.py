"""From the recipe's data section to training, validation and test samples, every input row accounted for."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from uplift.core.errors import DataError, Place, UsageError
from uplift.core.recipe import ClassifyTask, Data, Task
from uplift.core.report import StepReport
from uplift.core.source_section import AnySource
from uplift.core.values import Part, Sample
from uplift.data.clean.pipeline import Changed, Removed
from uplift.data.clean.steps import QualityMaker
from uplift.data.formats import Converted, Head, to_samples
from uplift.data.labels import Labels
from uplift.data.leakage import Leakage, find_leakage
from uplift.data.prepare import prepare_other, prepare_train
from uplift.data.rows import NAME_ENCODING, BadRow, RowSet
from uplift.data.sources import read_source
from uplift.data.splitting import split

SHOWN_BAD = 5


@dataclass
class Parts:
    """The samples of a run. ``rows_in`` = ``rows_kept`` + dropped + quarantined, over all sources.

    ``labels`` are the class words by index; ``fingerprint`` identifies the content of all parts, whatever its order.
    """

    train: list[Sample]
    validation: list[Sample]
    test: list[Sample]
    labels: tuple[str, ...]
    rows_in: int
    rows_kept: int
    quarantined: list[BadRow]
    leakage: Leakage
    fingerprint: str
    dropped: tuple[Removed, ...] = ()
    """Training rows that steps of `data.prepare` dropped."""
    changed: tuple[Changed, ...] = ()
    """Rows that these steps changed."""
    notes: tuple[str, ...] = ()
    """What of the sources was not read."""
    prepared: tuple[StepReport, ...] = ()
    """What each of these steps did."""


def load_parts(data: Data, task: Task, base_dir: Path, head: Head, *, quality: QualityMaker | None = None) -> Parts:
    """Read, prepare, convert and split. A part with its own source loses no row; the others are cut from ``train``.

    ``quality`` opens the model of a `quality` step. Raises UsageError when a part is given twice, DataError when a source
    cannot be used, too many of its rows are bad (``data.max_bad``), or a part comes out empty.
    """
    _check_given_once(data)
    prepared = prepare_train(_read(data.train, base_dir, data.max_bad), data, task, base_dir, quality)
    rows, changed = prepared.rows, prepared.changed
    notes = dict.fromkeys(rows.notes)
    labels = Labels.of(rows.rows, task) if isinstance(task, ClassifyTask) else None
    total = _Total(data.max_bad)
    whole = total.add(rows, to_samples(rows.rows, task, head, labels, split=data.split))
    parts = split(whole, data.split)
    given: dict[Part, AnySource | None] = {"validation": data.validation, "test": data.test}
    for name, source in given.items():
        if source is not None:
            own = prepare_other(_read(source, base_dir, data.max_bad), data.prepare, task, base_dir)
            parts[name] = total.add(own.rows, to_samples(own.rows.rows, task, head, labels))
            changed += own.changed
            notes |= dict.fromkeys(own.rows.notes)
    _check_not_empty(parts, data)
    return Parts(
        **parts,
        labels=labels.words if labels else (),
        rows_in=total.rows_in + len(prepared.dropped),
        rows_kept=total.kept,
        quarantined=total.quarantined,
        leakage=find_leakage([*parts["train"], *parts["validation"]], parts["test"]),
        fingerprint=fingerprint(parts["train"], parts["validation"], parts["test"]),
        dropped=prepared.dropped,
        changed=changed,
        notes=tuple(notes),
        prepared=prepared.steps,
    )


def _read(source: AnySource, base_dir: Path, max_bad: float) -> RowSet:
    """The rows of a source; refused here already when reading alone finds too many bad ones."""
    found = read_source(source, base_dir)
    if not found.rows or len(found.quarantined) > max_bad * found.rows_in:
        raise _too_many_bad(found.quarantined, found.rows_in, max_bad)
    return found


class _Total:
    """Counts rows over sources and refuses a source with too many bad ones."""

    def __init__(self, max_bad: float) -> None:
        self._max_bad = max_bad
        self.rows_in = self.kept = 0
        self.quarantined: list[BadRow] = []

    def add(self, rows: RowSet, converted: Converted) -> list[Sample]:
        bad = sorted([*rows.quarantined, *converted.quarantined], key=lambda row: (row.origin.file, row.origin.line))
        kept = len(converted.samples)
        if rows.rows_in != kept + len(bad):
            raise AssertionError(f"{rows.rows_in} rows went in, {kept} are kept and {len(bad)} quarantined")
        if len(bad) > self._max_bad * rows.rows_in or not kept:
            raise _too_many_bad(bad, rows.rows_in, self._max_bad)
        self.rows_in += rows.rows_in
        self.kept += kept
        self.quarantined += bad
        return converted.samples


def _too_many_bad(bad: Sequence[BadRow], rows_in: int, max_bad: float) -> DataError:
    shown = [str(row) for row in bad[:SHOWN_BAD]]
    more = [f"and {len(bad) - SHOWN_BAD} more"] if len(bad) > SHOWN_BAD else []
    most = Counter(row.rule for row in bad).most_common(1)[0][0] if bad else ""
    return DataError(
        f"{len(bad)} of {rows_in} rows are bad; at most {max_bad:.0%} may be",
        where=Place(bad[0].origin.file, bad[0].origin.line, bad[0].column, "data.max_bad") if bad else "data.max_bad",
        why="\n       ".join([*shown, *more]),
        fix=NAME_ENCODING if most == "utf8" else "repair these rows, or raise `data.max_bad` to leave them out",
    )


def _check_given_once(data: Data) -> None:
    for name, source, share in (
        ("validation", data.validation, data.split.validation),
        ("test", data.test, data.split.test),
    ):
        if source is not None and share > 0:
            what = f"the {name} part is given twice"
            fix = f"keep `data.{name}` or `data.split.{name}`"
            raise UsageError(what, where=f"data.split.{name}", fix=fix)


def _check_not_empty(parts: dict[Part, list[Sample]], data: Data) -> None:
    wanted: dict[Part, bool] = {
        "train": True,
        "validation": data.validation is not None or data.split.validation > 0,
        "test": data.test is not None or data.split.test > 0,
    }
    for name, needed in wanted.items():
        if needed and not parts[name]:
            why = f"the split leaves {', '.join(f'{len(samples)} {part}' for part, samples in parts.items())} rows"
            fix = "give more rows, another share or another `data.split.seed`"
            raise DataError(f"the {name} part is empty", where="data.split", why=why, fix=fix)


def fingerprint(*parts: Sequence[Sample]) -> str:
    """sha256 over the ids, labels and whole content of the samples of each part, the same for any order within a part."""
    whole = hashlib.sha256()
    for samples in parts:
        for digest in sorted(_digest(sample) for sample in samples):
            whole.update(digest)
        whole.update(b"\x00part")
    return whole.hexdigest()


def _digest(sample: Sample) -> bytes:
    turns = [(message.role, message.content, message.learn) for message in sample.messages]
    content = json.dumps([sample.id, sample.label, sample.text, turns, sample.group])
    return hashlib.sha256(content.encode()).digest()
