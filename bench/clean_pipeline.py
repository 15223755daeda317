"""``python -m bench.clean --pipeline``: the whole of ``uplift data clean`` as its users run it, beside datatrove's executor.

Each side is a command of its own, one after the other in one run: clock, processor seconds and memory of all its processes are
taken from outside. Before them Uplift does a quarter of the documents, to show what memory does with their number.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import uplift
from bench.clean_corpus import documents, write_shards

WATCHED = Path(__file__).with_name("watched.py")
PEER = Path(__file__).with_name("clean_pipeline_peer.py")
STEPS = ("repair", "pii", "filter", "dedup")
STAGES = ("reading", *STEPS, "between passes", "writing")
BARS = ("pii", "filter", "dedup")
"""Stages that must not be slower than the peer's; so must the whole, by the clock and by its processors' time."""
FLAT = 4
"""Memory is measured on so much less as well."""
WORDS = "BENCH_CLEAN_WORDS"


def watched(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """What a command cost (see ``bench/watched.py``), and what it printed."""
    report, output = folder / "report.json", folder / "output"
    words = [sys.executable, str(WATCHED), str(report), str(output), *command]
    done = subprocess.run(words, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{command[0]} could not run:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return found, output.read_text(encoding="utf-8")


def ours(source: Path, folder: Path, workers: int, environment: Mapping[str, str]) -> dict[str, Any]:
    """Uplift on a folder of JSON lines."""
    command = [sys.executable, "-m", "uplift", "data", "clean", str(source), "--output", str(folder / "cleaned")]
    options = ["--steps", ",".join(STEPS), "--workers", str(workers), "--json"]
    cost, printed = watched([*command, *options], folder, environment)
    told = json.loads(printed)
    stages = {name: {"seconds": seconds} for name, seconds in told["other_seconds"].items()}
    for step, seconds in zip(told["card"]["steps"], told["step_seconds"], strict=True):
        stages[step["use"]] = {"seconds": seconds, "characters": step["characters_in"]}
    stages["reading"]["characters"] = told["card"]["characters_in"]
    left = {step["use"]: step["rows_out"] for step in told["card"]["steps"]}
    return {**cost, "stages": stages, "left": left, "version": uplift.__version__}


def theirs(interpreter: str, source: Path, folder: Path, workers: int, environment: Mapping[str, str]) -> dict[str, Any]:
    """datatrove on the same folder."""
    command = [interpreter, str(PEER), str(source), str(folder / "work"), str(workers)]
    cost, printed = watched(command, folder, environment)
    ask = [interpreter, "-c", "import importlib.metadata; print(importlib.metadata.version('datatrove'))"]
    version = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()
    return {**cost, **json.loads(printed.strip().splitlines()[-1]), "version": version}


def measured(
    megabytes: float,
    peer_megabytes: float,
    workers: int,
    interpreter: str,
    words: Sequence[str],
    environment: Mapping[str, str],
) -> dict[str, dict[str, Any]]:
    """All sides, one after the other; each with the documents and megabytes that it had."""
    found: dict[str, dict[str, Any]] = {}
    sides = [("uplift, a quarter", megabytes / FLAT), ("uplift", megabytes)]
    sides += [(f"datatrove, {each} words", peer_megabytes) for each in words if interpreter]
    for side, size in sides:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            about = write_shards(documents(size), folder / "documents", workers)
            if side.startswith("uplift"):
                found[side] = about | ours(folder / "documents", folder, workers, environment)
            else:
                chosen = {**environment, WORDS: "plain" if "plain" in side else "spacy"}
                found[side] = about | theirs(interpreter, folder / "documents", folder, workers, chosen)
    return found


def speed(side: Mapping[str, Any], stage: str) -> float | None:
    """Millions of characters a second of work in a stage; those of the input where a stage has no count of its own."""
    told = side["stages"].get(stage)
    if told is None or not told["seconds"]:
        return None
    return float(told.get("characters", side["stages"]["reading"]["characters"])) / 1e6 / float(told["seconds"])


def slower(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What of Uplift is slower than any peer's, in words."""
    own = found["uplift"]
    told = []
    for name, side in found.items():
        if name.startswith("uplift"):
            continue
        for stage in BARS:
            mine, other = speed(own, stage), speed(side, stage)
            if mine is not None and other is not None and mine < other:
                told.append(f"{stage}: {mine:.2f} M characters/s, {name} {other:.2f}")
        for clock in ("wall", "cpu"):
            if own["megabytes"] / own[clock] < side["megabytes"] / side[clock]:
                told.append(f"the whole, {clock} seconds per megabyte: {name} needs fewer")
    return told


def show(found: Mapping[str, Mapping[str, Any]], workers: int) -> None:
    """A column for each side."""
    table = Table("", *found, title=f"whole cleaning, {workers} workers")
    for column in table.columns[1:]:
        column.justify = "right"
    sides = list(found.values())
    table.add_row("MB of text", *(f"{side['megabytes']:,.1f}" for side in sides))
    table.add_row("documents", *(f"{side['documents']:,}" for side in sides))
    table.add_row("seconds by the clock", *(f"{side['wall']:,.1f}" for side in sides))
    table.add_row("MB/s by the clock", *(f"{side['megabytes'] / side['wall']:,.2f}" for side in sides))
    table.add_row("processor seconds", *(f"{side['cpu']:,.1f}" for side in sides))
    table.add_row("MB a processor second", *(f"{side['megabytes'] / side['cpu']:,.2f}" for side in sides), end_section=True)
    for stage in STAGES:
        rates = [speed(side, stage) for side in sides]
        table.add_row(f"{stage}, M characters/s of work", *("-" if rate is None else f"{rate:,.2f}" for rate in rates))
    table.add_section()
    for stage in ("filter", "dedup"):
        table.add_row(f"documents left by {stage}", *(f"{side['left'][stage]:,}" for side in sides))
    for name, told in (("peak", "largest process"), ("main", "first process"), ("together", "all processes at once")):
        table.add_row(f"MB of memory, {told}", *(f"{side[name] / 1e6:,.0f}" for side in sides))
    Console().print(table)


def benchmark(
    megabytes: float,
    peer_megabytes: float,
    workers: int,
    interpreter: str,
    words: Sequence[str],
    environment: Mapping[str, str],
) -> tuple[dict[str, Any], list[str]]:
    """Measure and print; the record, and what is slower than it must be."""
    found = measured(megabytes, peer_megabytes, workers, interpreter, words, environment)
    show(found, workers)
    missed = slower(found)
    for told in missed:
        Console().print(f"slower: {told}")
    return {"workers": workers, "steps": list(STEPS), "sides": found, "slower": missed}, missed
