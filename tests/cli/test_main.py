"""The command line: exit codes, clean errors, nearest names, JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from uplift.cli import main as cli
from uplift.core.errors import DataError, ResourceError, Stopped

RECIPE = "model: some/model\ndata: {train: a.csv, split: {validation: 0.1}}\ntechniques: [{use: label_smoothing}, {use: ema}]\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in cli.COMMANDS)
    assert cli.main([]) == 0


def test_every_command_has_a_help_page(capsys: pytest.CaptureFixture[str]) -> None:
    """Each lazy path leads to a function whose arguments are explained."""
    for name in cli.COMMANDS:
        assert cli.main([name, "--help"]) == 0, name
        assert cli.COMMANDS[name][1][:20] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["rum"], "did you mean `run`?"),
        (["explian", "x"], "did you mean `explain`?"),
        (["explain", "--jsn", "x"], "--json"),
        (["explain"], "RECIPE"),
        (["doctor", "--speed=maybe"], "speed"),
        (["techniques", "label_smothing"], "did you mean `label_smoothing`?"),
        (["explain", "none.yaml"], "none.yaml"),
    ],
)
def test_wrong_usage_is_exit_2_with_a_hint(words: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert hint in err and "Traceback" not in err and not out


def test_a_broken_recipe_is_exit_2_with_places(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", str(recipe), "train.lrr=3", "seed=-1"]) == 2
    err = capsys.readouterr().err
    assert "did you mean `lr`?" in err and "override seed=-1" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (DataError("row 7 is broken", where="a.csv"), 65, "a.csv: row 7 is broken"),
        (ResourceError("the disk is full", fix="free 3 GiB"), 75, "fix: free 3 GiB"),
        (Stopped("stopped by SIGTERM", 15), 143, "run the same command again"),
        (KeyboardInterrupt(), 130, "stopped"),
        (MemoryError(), 75, "memory ran out"),
        (RuntimeError("two\nlines"), 70, "internal error: RuntimeError: two lines"),
    ],
)
def test_errors_become_exit_codes(
    error: BaseException, code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: list[str]) -> int:
        raise error

    monkeypatch.delenv("UPLIFT_DEBUG", raising=False)
    monkeypatch.setattr(cli, "_dispatch", fail)
    assert cli.main(["run"]) == code
    err = capsys.readouterr().err
    assert words in err and "Traceback" not in err


def test_the_trace_is_shown_when_asked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("UPLIFT_DEBUG", "1")
    monkeypatch.setattr(cli, "_dispatch", lambda _: 1 // 0)
    assert cli.main(["run"]) == 70
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{sys.executable} -m uplift techniques --json | head -c 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert done.stdout == "[" and "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_odd_characters_reach_a_narrow_terminal(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: x\ndata: {train: a}\nкл\U0001f600ч: 1\n", encoding="utf-8")
    command = [sys.executable, "-m", "uplift", "explain", str(path)]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, check=False)
    assert done.returncode == 2 and b"recipe.yaml:3:" in done.stderr and b"Traceback" not in done.stderr


def test_explain_json(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", str(recipe), "--json", "train.lr=1e-4"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["chains"]["terms"] == ["label_smoothing"] and content["chains"]["finish"] == ["ema"]
    assert content["plan"] is None, "the model is not here, and nothing is fetched for an explanation"
    assert "lr: 0.0001" in content["recipe"] and "training" in content["given"]


def test_explain_for_people(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", str(recipe)]) == 0
    text = capsys.readouterr().out
    assert "label_smoothing" in text and "forwards per step: 1" in text


def test_techniques_json_holds_every_technique(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["techniques", "--json"]) == 0
    cards = json.loads(capsys.readouterr().out)
    assert {"label_smoothing", "lora"} <= {card["use"] for card in cards}
    assert cli.main(["techniques", "--json", "--theme", "regularize"]) == 0
    assert {card["theme"] for card in json.loads(capsys.readouterr().out)} == {"regularize"}


def test_doctor_prints_a_line_per_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--no-speed"]) == 0
    text = capsys.readouterr().out
    assert "torch" in text and "memory" in text
    assert cli.main(["doctor", "--no-speed", "--json"]) == 0
    assert {"name", "status", "detail", "remedy"} == set(json.loads(capsys.readouterr().out)[0])


def test_init_writes_and_does_not_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": f"row number {i}", "label": i % 2}) + "\n" for i in range(60)))
    command = ["init", str(data), "--directory", str(tmp_path)]
    assert cli.main(command) == 0
    assert cli.main(command) == 2
    assert "--force" in capsys.readouterr().err
    assert cli.main([*command, "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["goal"] == "classify"
    assert cli.main(["explain", str(tmp_path / "comparison.yaml")]) == 0
    assert cli.main(["init", str(tmp_path / "none.csv"), "--directory", str(tmp_path / "new")]) == 65
