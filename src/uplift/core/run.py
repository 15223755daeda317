"""A run is a folder: resolved recipe, identity, metrics, events, checkpoints, report; readable without Uplift.

::

    <name>-<hash>/
      recipe.json        the resolved recipe
      identity.json      versions, device, threads: what a resumed run is compared with
      metrics.sqlite     tables ``metrics(step, name, value)`` and ``events(time, code, text, step, data)``
      quarantine.jsonl   rows that were left out, each with file, line and rule
      removed.jsonl      rows that `data.prepare` dropped, each with file, line, step and rule
      changed.jsonl      rows that it changed, each with file, line, step, rule, and the text before and after
      checkpoints/step-00000010/
      model/  adapter/   plain transformers and PEFT folders
      report.json  report.html
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import ValidationError

from uplift.core.errors import Place, ResourceError, UsageError
from uplift.core.report import ComparisonReport, Curve, EventSummary, Report
from uplift.core.storage import DamagedFiles, DirectoryLock, free_bytes, recover, write_atomically
from uplift.core.study_report import ScalingReport, StagesReport, TransferReport

TABLES = """
CREATE TABLE IF NOT EXISTS metrics (
  step INTEGER NOT NULL, name TEXT NOT NULL, value REAL, PRIMARY KEY (step, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (
  id INTEGER PRIMARY KEY, time TEXT NOT NULL, code TEXT NOT NULL, text TEXT NOT NULL, step INTEGER, data TEXT NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS events_once ON events (step, code, text) WHERE step IS NOT NULL;
"""

StoredReport = Report | ComparisonReport | TransferReport | StagesReport | ScalingReport
KINDS: Mapping[str, type[StoredReport]] = {
    "run": Report,
    "comparison": ComparisonReport,
    "transfer": TransferReport,
    "stages": StagesReport,
    "scaling": ScalingReport,
}
"""What a folder's report can be, by its ``kind``."""


@dataclass(frozen=True)
class Event:
    """Something worth telling that happened: ISO time (UTC), a code for programs, a text for people, JSON details."""

    time: str
    code: str
    text: str
    data: Mapping[str, Any] = field(default_factory=dict)


class Run:
    """One run folder. ``create`` opens it for writing under a lock; ``open`` reads it, also while it is being written."""

    def __init__(self, path: Path, lock: DirectoryLock | None) -> None:
        self.path, self._lock = path, lock
        self._database: sqlite3.Connection | None = None

    @classmethod
    def create(cls, recipe_json: Mapping[str, Any], root: Path, name: str, hash: str) -> Self:
        """The run folder ``root/<name>-<hash>``, new or opened again to continue, locked for this process.

        Raises ResourceError when another process holds it or the disk refuses, DamagedFiles when its metrics cannot be read.
        """
        path = root / f"{name}-{hash}"
        recipe = json.dumps(recipe_json, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        if not path.is_dir():
            write_atomically(path / "recipe.json", recipe)
        lock = DirectoryLock(path).acquire()
        run = cls(path, lock)
        try:
            recover(path)
            if not (path / "recipe.json").exists():
                write_atomically(path / "recipe.json", recipe)
            with suppress(FileExistsError):
                run.checkpoints.mkdir()
            run._connect()
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def open(cls, path: Path) -> Self:
        """An existing run folder to read. Raises UsageError when there is none."""
        if not (path / "recipe.json").is_file():
            raise UsageError(
                "not a run folder: it has no recipe.json",
                where=Place(file=str(path)),
                fix="give the folder that `uplift run` printed",
            )
        return cls(path, None)

    # -- places ---------------------------------------------------------------------------------------------------------
    @property
    def checkpoints(self) -> Path:
        """Folder of the committed ``step-XXXXXXXX`` directories."""
        return self.path / "checkpoints"

    @property
    def model_dir(self) -> Path:
        """The resulting model as a plain transformers folder."""
        return self.path / "model"

    @property
    def adapter_dir(self) -> Path:
        """The resulting adapter as a plain PEFT folder, where there is one."""
        return self.path / "adapter"

    @property
    def quarantine_file(self) -> Path:
        """Rows that were left out, one JSON object a line."""
        return self.path / "quarantine.jsonl"

    @property
    def removed_file(self) -> Path:
        """Rows that `data.prepare` dropped, one JSON object a line."""
        return self.path / "removed.jsonl"

    @property
    def changed_file(self) -> Path:
        """Rows that `data.prepare` changed, one JSON object for each rule."""
        return self.path / "changed.jsonl"

    @property
    def report_file(self) -> Path:
        """``report.json``."""
        return self.path / "report.json"

    @property
    def report_page(self) -> Path:
        """``report.html``."""
        return self.path / "report.html"

    # -- small files ----------------------------------------------------------------------------------------------------
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe the folder was made for. Raises DamagedFiles."""
        return self._read_json("recipe.json")

    def write_identity(self, identity: Mapping[str, str]) -> None:
        """Keep what a resumed run is compared with."""
        write_atomically(self.path / "identity.json", json.dumps(dict(identity), indent=1, sort_keys=True) + "\n")

    def identity(self) -> dict[str, str]:
        """What ``write_identity`` kept; empty for a new run. Raises DamagedFiles."""
        return self._read_json("identity.json") if (self.path / "identity.json").exists() else {}

    def write_report(self, report: StoredReport) -> None:
        """Replace ``report.json`` in one step."""
        write_atomically(self.report_file, report.model_dump_json(indent=1) + "\n")

    def report(self) -> StoredReport | None:
        """The report, or None while there is none. Raises DamagedFiles."""
        if not self.report_file.exists():
            return None
        content = self._read_json("report.json")
        try:
            return KINDS.get(str(content.get("kind")), Report).model_validate(content)
        except ValidationError as error:
            raise DamagedFiles(
                self.path, {"report.json": f"not a report of this version ({error.errors()[0]['msg']})"}
            ) from error

    @property
    def finished(self) -> bool:
        """Whether the asked work is done: there is a report and it says ``finished``."""
        report = self.report()
        return report is not None and report.status == "finished"

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise DamagedFiles(self.path, {name: "cannot be read as JSON"}) from error
        if not isinstance(content, dict):
            raise DamagedFiles(self.path, {name: "is no JSON object"})
        return content

    # -- metrics and events ---------------------------------------------------------------------------------------------
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Keep metrics of a step; a name logged again for the same step is replaced (so a resumed run repeats itself exactly).

        NaN and infinities are kept as they are. Survives a killed process; not forced to disk row by row.
        """
        rows = [(step, name, None if math.isnan(value) else float(value)) for name, value in values.items()]
        with self._database_errors() as database, database:
            database.executemany("INSERT INTO metrics VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET value = excluded.value", rows)

    def forget_after(self, step: int) -> None:
        """Drop metrics of later steps: they belong to work that is done again after a restart."""
        with self._database_errors() as database, database:
            database.execute("DELETE FROM metrics WHERE step > ?", (step,))

    def metrics(self, name: str | None = None) -> list[tuple[int, str, float]]:
        """(step, name, value) in order of step, of one metric or of all."""
        query = "SELECT step, name, value FROM metrics WHERE ?1 IS NULL OR name = ?1 ORDER BY step, name"
        with self._database_errors() as database:
            rows = database.execute(query, (name,)).fetchall()
        return [(step, kind, math.nan if value is None else value) for step, kind, value in rows]

    def event(self, code: str, text: str, **data: Any) -> None:
        """Keep something that happened. With ``step=`` in ``data`` it is kept once, however often that step is done again."""
        row = (_now(), code, text, data.get("step"), json.dumps(data, default=str))
        with self._database_errors() as database, database:
            database.execute("INSERT OR REPLACE INTO events (time, code, text, step, data) VALUES (?, ?, ?, ?, ?)", row)

    def events(self, code: str | None = None) -> list[Event]:
        """What happened, in order, of one code or of all."""
        query = "SELECT time, code, text, data FROM events WHERE ?1 IS NULL OR code = ?1 ORDER BY id"
        with self._database_errors() as database:
            rows = database.execute(query, (code,)).fetchall()
        return [Event(time, kind, text, json.loads(data)) for time, kind, text, data in rows]

    def event_summary(self) -> tuple[EventSummary, ...]:
        """Events counted by code, in order of first occurrence, each with its last text."""
        counted: dict[str, EventSummary] = {}
        for event in self.events():
            count = counted[event.code].count + 1 if event.code in counted else 1
            counted[event.code] = EventSummary(code=event.code, count=count, text=event.text)
        return tuple(counted.values())

    def curves(self, names: Sequence[str]) -> tuple[Curve, ...]:
        """The named metrics as curves, those the run has."""
        points = {name: [(step, value) for step, _, value in self.metrics(name)] for name in names}
        return tuple(Curve.of(name, found) for name, found in points.items() if found)

    def _connect(self) -> sqlite3.Connection:
        if self._database is None:
            file = self.path / "metrics.sqlite"
            with _explained(file):
                if self._lock is None:
                    database = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=30)
                else:
                    database = sqlite3.connect(file, timeout=30)
                    database.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;" + TABLES)
            self._database = database
        return self._database

    @contextmanager
    def _database_errors(self) -> Iterator[sqlite3.Connection]:
        database = self._connect()
        with _explained(self.path / "metrics.sqlite"):
            yield database

    # -- life -----------------------------------------------------------------------------------------------------------
    def close(self) -> None:
        """Close the metrics and give the lock back; safe to call twice."""
        if self._database is not None:
            self._database.close()
            self._database = None
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    """Turn sqlite's errors into typed ones that name the file."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise ResourceError(
            f"cannot use {file}",
            where=Place(file=str(file)),
            why=f"{error}; {free_bytes(file):,} bytes are free",
            fix="make room or repair the disk, then run the same command again",
        ) from error
    except sqlite3.DatabaseError as error:
        raise DamagedFiles(file.parent, {file.name: str(error)}) from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
