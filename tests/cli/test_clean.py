"""`uplift data clean` and `uplift data rules` on the command line: what is printed, exit codes, JSON, no torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from uplift.cli.main import main
from uplift.testing.tiny import tiny_rows, write_rows


@pytest.fixture
def source(tmp_path: Path) -> str:
    rows = tiny_rows("text", 30)
    odd = {"text": "Ask anna.smith@mail-server.net, she knows [red]everything[/red] about it"}
    return str(write_rows(tmp_path / "rows.jsonl", [*rows, rows[0], odd]))


def test_it_tells_what_it_did(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "clean", source, "--output", str(tmp_path / "out")]) == 0
    text = "".join(capsys.readouterr().out.split())  # lines wrap where the terminal ends
    for told in (
        "32 rows in = 31 kept + 1 dropped + 0 quarantined",
        "dedup/exact",
        f"same as {source}:1",
        "[red]everything[/red]",
    ):
        assert "".join(told.split()) in text
    for told in ("[email]", "the web filters are off", "data.jsonl"):
        assert "".join(told.split()) in text


def test_json_and_dry_run(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "clean", source, "--dry-run", "--json", "--steps", "repair,dedup"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["path"] is None and found["card"]["rows_kept"] == 31
    assert [step["use"] for step in found["card"]["steps"]] == ["repair", "dedup"]
    assert set(found["other_seconds"]) == {"reading", "between passes", "writing"}
    assert sum(found["step_seconds"]) + sum(found["other_seconds"].values()) <= found["seconds"]
    assert min(found["step_seconds"]) > 0 and "step_seconds" not in found["card"]
    assert not list(tmp_path.glob("out*"))


def test_steps_from_a_file(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone, recipe, none = tmp_path / "steps.yaml", tmp_path / "recipe.yaml", tmp_path / "none.yaml"
    alone.write_text("prepare: [{use: dedup, near: false}]\n")
    recipe.write_text("model: x\ndata:\n  train: rows.jsonl\n  prepare: [{use: decontaminate, against: [rows.jsonl]}]\n")
    none.write_text("model: x\n")
    assert main(["data", "clean", source, "--dry-run", "--json", "--recipe", str(alone)]) == 0
    assert json.loads(capsys.readouterr().out)["card"]["settings"][0]["near"] is False
    assert main(["data", "clean", source, "--dry-run", "--recipe", str(recipe)]) == 65
    assert "no row is left" in capsys.readouterr().err
    assert main(["data", "clean", source, "--dry-run", "--recipe", str(none)]) == 2
    assert "there are no steps in this file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "there is nothing to clean"),
        (["rows.jsonl"], "nowhere to write to"),
        (["rows.jsonl", "--dry-run", "--steps", "clean"], "there is no step `clean`"),
        (["rows.jsonl", "--dry-run", "--steps", "repair", "--recipe", "x.yaml"], "both name steps"),
        (["rows.jsonl", "--dry-run", "--workers", "0"], ""),
    ],
)
def test_what_cannot_be_done_is_said(
    words: list[str],
    told: str,
    source: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "clean", *words]) == 2
    assert told in capsys.readouterr().err


def test_rules_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "rules", "--json"]) == 0
    rules = json.loads(capsys.readouterr().out)
    assert len(rules) >= 20 and {rule["set"] for rule in rules} == {"c4", "gopher", "fineweb"}
    assert all(rule["name"] and rule["meaning"] for rule in rules)
    assert main(["data", "rules"]) == 0
    assert rules[0]["name"] in capsys.readouterr().out


def test_cleaning_starts_without_torch(source: str) -> None:
    code = (
        "import sys; from uplift.cli.main import main\n"
        f"assert main(['data', 'clean', {source!r}, '--dry-run', '--json']) == 0\n"
        "sys.exit(int('torch' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


SLOW = """
import signal, sys, time
from uplift.cli.main import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs these tests may ignore it
from uplift.data.clean.repair import Repairer
judge = Repairer.judge
Repairer.judge = lambda self, row, text: (time.sleep(0.2), judge(self, row, text))[1]
sys.exit(main(sys.argv[1:]))
"""


def begun(source: str, tmp_path: Path, workers: int) -> subprocess.Popen[str]:
    """A cleaning that would take seconds, in the midst of its work."""
    words = ["data", "clean", source, "--output", str(tmp_path / "out"), "--workers", str(workers), "--steps", "repair,dedup"]
    command = [sys.executable, "-c", SLOW, *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    end = time.monotonic() + 30
    while not list(tmp_path.glob(".tmp-out-*/data.jsonl")) and time.monotonic() < end and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.3)  # the workers are at it
    return process


@pytest.mark.parametrize(
    ("number", "workers", "to_all"), [(signal.SIGTERM, 1, False), (signal.SIGTERM, 2, True), (signal.SIGINT, 2, True)]
)
def test_a_signal_leaves_nothing_behind(
    number: signal.Signals, workers: int, to_all: bool, source: str, tmp_path: Path
) -> None:
    process = begun(source, tmp_path, workers)
    os.killpg(process.pid, number) if to_all else process.send_signal(number)  # a terminal sends it to all processes
    told = process.communicate(timeout=20)[1].strip().splitlines()
    assert process.returncode == 128 + number
    assert told == ["pass 1 of 2: repair, dedup", f"stopped by {number.name}: what was not complete is removed"]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_what_a_killed_process_left_goes_with_the_next_run(source: str, tmp_path: Path) -> None:
    process = begun(source, tmp_path, 1)
    (left,) = tmp_path.glob(".tmp-out-*")
    others = [tmp_path / ".tmp-out-mine", tmp_path / ".tmp-output-999999999"]
    for other in others:
        other.mkdir()
    assert main(["data", "clean", source, "--output", str(tmp_path / "out")]) == 0
    assert left.exists(), "another process is at it"
    process.kill()
    process.communicate()
    (tmp_path / "out").rename(tmp_path / "earlier")
    assert main(["data", "clean", source, "--output", str(tmp_path / "out")]) == 0
    assert not left.exists() and all(other.exists() for other in others)
