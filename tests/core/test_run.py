"""The run folder: metrics and events that survive a kill, one writer, a report that says whether the work is done."""

from __future__ import annotations

import json
import math
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from uplift.core import storage
from uplift.core.errors import ResourceError, UsageError
from uplift.core.report import Cost, Report
from uplift.core.run import Run
from uplift.core.storage import DamagedFiles

RECIPE = {"name": "spam", "seed": 0, "train": {"lr": 1e-4}}


def make(root: Path) -> Run:
    return Run.create(RECIPE, root, "spam", "abc123def456")


def test_the_folder_holds_what_was_asked_and_is_readable_without_uplift(tmp_path: Path) -> None:
    with make(tmp_path) as run:
        assert run.path == tmp_path / "spam-abc123def456"
        run.log(1, {"loss": 2.5, "tokens": 100})
        run.event("started", "training begins", rows=5)
        run.write_identity({"torch": "2", "threads": "1"})
    assert json.loads((run.path / "recipe.json").read_text()) == RECIPE
    assert json.loads((run.path / "identity.json").read_text()) == {"threads": "1", "torch": "2"}
    with sqlite3.connect(run.path / "metrics.sqlite") as database:
        assert database.execute("SELECT value FROM metrics WHERE name = 'loss'").fetchall() == [(2.5,)]
        assert database.execute("SELECT code, text, data FROM events").fetchall() == [
            ("started", "training begins", '{"rows": 5}')
        ]


def test_metrics_are_upserts_and_keep_what_is_not_finite(tmp_path: Path) -> None:
    with make(tmp_path) as run:
        run.log(3, {"loss": 1.0})
        run.log(1, {"loss": 3.0, "lr": 0.1})
        run.log(3, {"loss": 0.5})
        run.log(4, {"loss": math.nan, "norm": math.inf})
        assert run.metrics("loss")[:2] == [(1, "loss", 3.0), (3, "loss", 0.5)]
        assert math.isnan(run.metrics("loss")[2][2])
        assert run.metrics("norm") == [(4, "norm", math.inf)]
        run.forget_after(3)
        assert [step for step, _, _ in run.metrics()] == [1, 1, 3]
        (curve,) = run.curves(["loss", "absent"])
        assert (curve.steps, curve.values) == ((1, 3), (3.0, 0.5))


def test_an_event_of_a_step_is_counted_once_however_often_the_step_is_done_again(tmp_path: Path) -> None:
    with make(tmp_path) as run:
        for _ in range(3):
            run.event("bad_step", "loss is nan, step skipped", step=7)
            run.event("resumed", "continues at step 5")
        run.event("bad_step", "loss is nan, step skipped", step=9)
        assert [(event.code, event.data.get("step")) for event in run.events("bad_step")] == [("bad_step", 7), ("bad_step", 9)]
        assert {(one.code, one.count) for one in run.event_summary()} == {("bad_step", 2), ("resumed", 3)}


def test_opening_again_resumes_and_finished_follows_the_report(tmp_path: Path) -> None:
    report = Report(name="spam", hash="abc123def456", status="stopped", cost=Cost(seconds=1, tokens=2, peak_memory_bytes=3))
    with make(tmp_path) as run:
        assert not run.finished and run.report() is None
        run.log(1, {"loss": 2.0})
        run.write_report(report)
        assert not run.finished
    with make(tmp_path) as again:
        assert again.metrics() == [(1, "loss", 2.0)]
        assert again.recipe() == RECIPE
        again.write_report(report.model_copy(update={"status": "finished"}))
        assert again.finished
        assert again.report() == report.model_copy(update={"status": "finished"})


def test_a_second_writer_is_refused_and_a_reader_is_not(tmp_path: Path) -> None:
    with make(tmp_path) as run:
        run.log(1, {"loss": 2.0})
        with pytest.raises(ResourceError, match="another run is using this directory"):
            make(tmp_path)
        with Run.open(run.path) as reader:
            assert reader.metrics("loss") == [(1, "loss", 2.0)]
            with pytest.raises(ResourceError, match="readonly|read-only"):
                reader.log(2, {"loss": 1.0})
    make(tmp_path).close()


def test_not_a_run_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="recipe.json"):
        Run.open(tmp_path)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    with make(tmp_path) as run:
        run.log(1, {"loss": 2.0})
    run.report_file.write_text('{"status": "fini')
    with pytest.raises(DamagedFiles, match="report.json"):
        _ = Run.open(run.path).finished
    run.report_file.write_text('{"status": "finished"}')
    with pytest.raises(DamagedFiles, match="report.json"):
        _ = Run.open(run.path).finished
    (run.path / "metrics.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(DamagedFiles, match="metrics.sqlite"):
        make(tmp_path)
    with pytest.raises(DamagedFiles, match="metrics.sqlite"):
        make(tmp_path)  # and the lock was given back


def test_debris_of_a_crash_is_tidied_on_opening(tmp_path: Path) -> None:
    with make(tmp_path) as run:
        storage.commit_directory(run.model_dir, lambda path: storage.write_file(path / "weights", b"x"), {})
    run.model_dir.rename(run.path / ".old-model")
    (run.path / ".tmp-model-999999999").mkdir()
    with make(tmp_path):
        storage.verify_directory(run.model_dir)
        assert not list(run.path.glob(".tmp-*")) and not list(run.path.glob(".old-*"))


KILLED = """
import sys
from pathlib import Path
from uplift.core.run import Run
run = Run.create({"name": "spam", "seed": 0, "train": {"lr": 1e-4}}, Path(sys.argv[1]), "spam", "abc123def456")
for step in range(1, 100_000):
    run.log(step, {"loss": 1 / step, "lr": 0.1})
    run.event("step", "did a step", step=step)
    print(step, flush=True)
"""


def test_rows_survive_a_kill(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = 0
    while told < 50:
        told = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    told = max([told, *(int(line) for line in process.stdout if line.endswith("\n"))])
    process.wait()
    with make(tmp_path) as run:
        losses = run.metrics("loss")
        assert len(losses) in (told, told + 1)
        assert all(value == 1 / step for step, _, value in losses)
        assert len(run.events("step")) in (told, told + 1)


def test_a_full_disk_is_a_typed_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with make(tmp_path) as run:
        run.log(0, {"loss": 1.0})
        pages = run._connect().execute("PRAGMA page_count").fetchone()[0]
        run._connect().execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(ResourceError, match=r"metrics\.sqlite[\s\S]*full[\s\S]*bytes are free"):
            for step in range(5000):
                run.log(step, {f"m{index}": float(index) for index in range(50)})
        assert run.metrics("loss") == [(0, "loss", 1.0)]
