"""Tools of the fault tests: the client of the fork server, recipes to interrupt, and the comparison with an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.marks import RESUME, SAVE, SAVED

from uplift.core.recipe import Recipe
from uplift.core.storage import DamagedFiles, file_sha256, verify_directory
from uplift.testing.tiny import merged, tiny_causal, tiny_encoder, tiny_recipe

ROOT = Path(__file__).resolve().parents[2]
CLOCKED = {"tokens_per_second"}
"""Metrics that measure time; everything else must come out equal."""
PATIENCE = 120.0


class ForkServer:
    """Client of ``server``; one per test module."""

    def __init__(self) -> None:
        quiet = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server"],
            cwd=ROOT,
            env={**os.environ, **quiet},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == {"ready": True}

    def start(self, case: str, log: Path, **arguments: Any) -> int:
        """Fork a child that runs ``case``; returns its process number."""
        self._ask({"case": case, "arguments": arguments, "log": str(log)})
        return int(self._answer()["pid"])

    def wait(self, pid: int) -> int:
        """Exit code of a child, negative when a signal ended it. One that hangs is killed and fails the test."""
        self._ask({"wait": pid})
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], PATIENCE)[0]:
            os.kill(pid, signal.SIGKILL)
            self._answer()
            raise TimeoutError(f"a child hung for {PATIENCE:.0f} s")
        return int(self._answer()["code"])

    def run(self, case: str, log: Path, **arguments: Any) -> int:
        """``start`` and ``wait``."""
        return self.wait(self.start(case, log, **arguments))

    def close(self) -> None:
        """End the server."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)

    def _ask(self, request: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the fork server ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


# -- recipes -----------------------------------------------------------------------------------------------------------
STEPS, SAVE_EVERY = 20, 2
COMMON: Mapping[str, Any] = {
    "train": {"steps": STEPS, "save_every": SAVE_EVERY, "evaluate_every": 7, "batch_tokens": 192, "micro_tokens": 128},
    "data": {"split": {"validation": 0.1, "test": 0.0}},
    "evaluate": {"base": False},
}


def chat_recipe(folder: Path, **changes: Any) -> Recipe:
    """Full fine-tuning with attention dropout, noise per sample and an average of the weights; several epochs."""
    if not (folder / "model").exists():
        tiny_causal(folder / "model", attention_dropout=0.1)
    techniques = [{"use": "neftune"}, {"use": "ema"}]
    return tiny_recipe(folder, "chat", rows=40, **merged({**COMMON, "techniques": techniques}, changes))


def classifier_recipe(folder: Path, **changes: Any) -> Recipe:
    """An encoder with dropout and a new classification head, which keeps the best step (and so writes it beside)."""
    if not (folder / "model").exists():
        dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
        tiny_encoder(folder / "model", **dropout)
    techniques = [{"use": "label_smoothing"}, {"use": "early_stopping", "patience": 50}]
    wanted = {**COMMON, "techniques": techniques, "train": {**COMMON["train"], "evaluate_every": 3}}
    return tiny_recipe(folder, "classify", rows=60, **merged(wanted, changes))


def adapter_recipe(folder: Path, **changes: Any) -> Recipe:
    """An adapter on the upper layer, the frozen layer below cached between epochs, easy samples first."""
    techniques = [{"use": "lora", "rank": 2, "layers": [1, 1]}, {"use": "curriculum_length"}]
    return tiny_recipe(folder, "classify", rows=30, **merged({**COMMON, "techniques": techniques}, changes))


RECIPES = {"chat": chat_recipe, "classifier": classifier_recipe, "adapter": adapter_recipe}


# -- what came out -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Outcome:
    """Everything of a finished run that must not depend on interruptions."""

    metrics: tuple[tuple[int, str, float | None], ...]
    weights: Mapping[str, str]

    @property
    def losses(self) -> dict[int, float | None]:
        """Loss of every step."""
        return {step: value for step, name, value in self.metrics if name == "loss"}


def run_folder(recipe: Recipe) -> Path:
    """Where ``recipe`` is carried out."""
    return Path(recipe.output_dir) / f"{recipe.name}-{recipe.hash()}"


def read_metrics(folder: Path) -> tuple[tuple[int, str, float | None], ...]:
    """All metrics of a run that is not being written, but those that measure time."""
    file = folder / "metrics.sqlite"
    if not file.exists():
        return ()
    database = sqlite3.connect(file)
    try:
        rows = database.execute("SELECT step, name, value FROM metrics ORDER BY step, name").fetchall()
    except sqlite3.OperationalError:  # killed before the tables were made
        return ()
    finally:
        database.close()
    return tuple(row for row in rows if row[1] not in CLOCKED)


def read_events(folder: Path, code: str) -> list[str]:
    """Texts of the events of one code."""
    database = sqlite3.connect(folder / "metrics.sqlite")
    try:
        return [text for (text,) in database.execute("SELECT text FROM events WHERE code = ? ORDER BY id", (code,))]
    finally:
        database.close()


def outcome(folder: Path) -> Outcome:
    """What a finished run folder holds."""
    weights = {path.name: file_sha256(path) for path in sorted((folder / "model").rglob("*.safetensors"))}
    assert weights, "the run saved no weights"
    return Outcome(read_metrics(folder), weights)


def newest_sound_step(folder: Path) -> int:
    """Step of the newest checkpoint that verifies; -1: none."""
    found = [-1]
    for path in folder.glob("checkpoints/step-*"):
        try:
            verify_directory(path)
        except DamagedFiles:
            continue
        found.append(int(path.name.removeprefix("step-")))
    return max(found)


def leftovers(folder: Path) -> list[str]:
    """Names of temporary files and half replacements under ``folder``."""
    return sorted(path.name for path in folder.rglob("*") if path.name.startswith((".tmp-", ".old-")))


# -- undisturbed and disturbed runs --------------------------------------------------------------------------------------
@dataclass
class Reference:
    """A recipe and what it gives when nobody disturbs it, with the times at which things happen (seconds)."""

    recipe: Recipe
    outcome: Outcome
    seconds: float
    saves: int
    save_seconds: float


def elsewhere(recipe: Recipe, directory: Path) -> Recipe:
    """The same recipe with another output folder (which is no part of its hash)."""
    return recipe.model_copy(update={"output_dir": str(directory)})


class Attempt:
    """One process that carries out a recipe, watched through its marks."""

    def __init__(self, server: ForkServer, recipe: Recipe, **faults: Any) -> None:
        self.server, self.folder = server, run_folder(recipe)
        place = Path(recipe.output_dir)
        place.mkdir(parents=True, exist_ok=True)
        self.log, self.journal, self._fifo = place / "log.txt", place / "journal.jsonl", place / "marks"
        if not self._fifo.exists():
            os.mkfifo(self._fifo)
        self._marks = os.open(self._fifo, os.O_RDONLY | os.O_NONBLOCK)
        file = place / "recipe.yaml"
        file.write_text(json.dumps(recipe.model_dump(mode="json")))  # JSON is YAML
        self.started = time.monotonic()
        self.pid = server.start("train", self.log, recipe=str(file), journal=str(self.journal), marks=str(self._fifo), **faults)

    def await_mark(self, wanted: int, count: int = 1) -> bool:
        """Wait until the child made this mark so many times; False when it ended before."""
        deadline = time.monotonic() + PATIENCE
        while count:
            assert time.monotonic() < deadline, "the child made no mark for a long time"
            select.select([self._marks], [], [], 0.2)
            try:
                byte = os.read(self._marks, 1)
            except BlockingIOError:
                continue
            if byte:
                count -= byte[0] == wanted
            elif _ended(self.pid):
                return False
            else:  # the child has not opened the marks yet
                time.sleep(0.002)
        return True

    def kill(self, after: float, signal_number: int = signal.SIGKILL) -> None:
        """Send a signal ``after`` seconds from now."""
        time.sleep(max(0.0, after))
        os.kill(self.pid, signal_number)

    def end(self) -> int:
        """Exit code (negative: ended by that signal)."""
        try:
            return self.server.wait(self.pid)
        finally:
            os.close(self._marks)


def _ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def start_together(server: ForkServer, recipe: Recipe, processes: int, **faults: Any) -> list[int]:
    """Start so many processes on one recipe as a launcher does; returns their numbers, rank by rank."""
    place = Path(recipe.output_dir)
    place.mkdir(parents=True, exist_ok=True)
    file = place / "recipe.yaml"
    file.write_text(json.dumps(recipe.model_dump(mode="json")))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "GLOO_SOCKET_IFNAME": "lo"}
    return [
        server.start(
            "train",
            place / f"log-{rank}.txt",
            recipe=str(file),
            journal=str(place / f"journal-{rank}.jsonl"),
            environment={**address, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)},
            **faults,
        )
        for rank in range(processes)
    ]


def logs(recipe: Recipe) -> str:
    """What all processes of a recipe printed."""
    return "\n".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in sorted(Path(recipe.output_dir).glob("log*.txt")))


def undisturbed(server: ForkServer, recipe: Recipe) -> Reference:
    """Carry out ``recipe`` once without any fault, timing it and its saves."""
    attempt = Attempt(server, recipe)
    saves: list[float] = []
    while attempt.await_mark(SAVE):
        begin = time.monotonic()
        if attempt.await_mark(SAVED):
            saves.append(time.monotonic() - begin)
    code, seconds = attempt.end(), time.monotonic() - attempt.started
    assert code == 0, attempt.log.read_text()
    return Reference(recipe, outcome(attempt.folder), seconds, len(saves), sorted(saves)[len(saves) // 2])


@dataclass
class Verdict:
    """What a disturbed run came to. ``problems`` is empty when it equals the undisturbed one in everything."""

    kills: int = 0
    in_save: int = 0
    lost_steps: list[int] = field(default_factory=list)
    leftovers_seen: int = 0
    problems: list[str] = field(default_factory=list)


def killed_and_resumed(server: ForkServer, reference: Reference, place: Path, seed: int, kills: int = 1) -> Verdict:
    """Carry out the reference's recipe with ``kills`` SIGKILLs at random instants, half of them aimed inside a save."""
    rng, verdict = random.Random(seed), Verdict()
    recipe = elsewhere(reference.recipe, place)
    folder = run_folder(recipe)
    while verdict.kills < kills:
        attempt = Attempt(server, recipe)
        aimed = rng.random() < 0.5
        _strike(attempt, reference, rng, aimed, repeated=kills > 1)
        code = attempt.end()
        if code == 0:  # it was faster than the blow
            if verdict.kills or kills > 1:
                break
            _remove(place)
            continue
        if code != -signal.SIGKILL:
            verdict.problems.append(f"ended with {code} instead of being killed: {attempt.log.read_text()[-2000:]}")
            return verdict
        verdict.kills, verdict.in_save = verdict.kills + 1, verdict.in_save + aimed
        verdict.leftovers_seen += len(leftovers(folder))
        logged = max((step for step, _, _ in read_metrics(folder)), default=0)
        sound = newest_sound_step(folder)
        if sound >= 0:
            verdict.lost_steps.append(logged - sound)
    _finish(server, recipe, verdict)
    _compare(verdict, reference, outcome(folder) if not verdict.problems else None)
    return verdict


def _strike(attempt: Attempt, reference: Reference, rng: random.Random, aimed: bool, repeated: bool) -> None:
    """SIGKILL the attempt at a random instant of the whole run, or inside a random save.

    ``repeated``: one of several blows to one run; each falls soon after the one before, some during the resume itself.
    """
    if repeated and not aimed:
        if attempt.await_mark(RESUME, 1):
            attempt.kill(rng.uniform(0, 2 * reference.save_seconds))
    elif aimed:
        if attempt.await_mark(SAVE, 1 + rng.randrange(max(1, reference.saves // (4 if repeated else 1)))):
            attempt.kill(rng.uniform(0, reference.save_seconds))
    else:
        attempt.kill(attempt.started + rng.uniform(0, reference.seconds) - time.monotonic())


def _finish(server: ForkServer, recipe: Recipe, verdict: Verdict) -> None:
    """Start it once more: it must end well by itself, with nothing of the crash left and no more lost than an interval."""
    if (run_folder(recipe) / "report.json").exists():
        return
    before = newest_sound_step(run_folder(recipe))
    attempt = Attempt(server, recipe)
    code = attempt.end()
    if code != 0:
        verdict.problems.append(f"the restart ended with {code}: {attempt.log.read_text()[-2000:]}")
        return
    entry = json.loads(attempt.journal.read_text().splitlines()[-1])
    if entry["leftovers"]:
        verdict.problems.append(f"left over after the restart: {entry['leftovers']}")
    if entry["step"] != max(before, 0):
        verdict.problems.append(f"continued from step {entry['step']}, but step {before} was sound")


def _compare(verdict: Verdict, reference: Reference, found: Outcome | None) -> None:
    worst = max(verdict.lost_steps, default=0)
    every = reference.recipe.train.save_every or 1
    if worst > every:
        verdict.problems.append(f"{worst} steps of work were lost, the save interval is {every}")
    if found is None:
        return
    if found.metrics != reference.outcome.metrics:
        odd = sorted(set(found.metrics) ^ set(reference.outcome.metrics))[:4]
        verdict.problems.append(f"metrics differ: {odd}")
    if found.weights != reference.outcome.weights:
        verdict.problems.append("the final weights differ")


def _remove(place: Path) -> None:
    for path in sorted(place.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


@contextmanager
def fork_server() -> Iterator[ForkServer]:
    """A fork server for the length of a block."""
    server = ForkServer()
    try:
        yield server
    finally:
        server.close()
