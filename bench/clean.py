"""``python -m bench.clean``: megabytes of text a second and core, stage by stage, beside datatrove on the same documents.

datatrove needs an environment of its own (``pip install 'datatrove[processing]' spacy``); ``--datatrove`` is its interpreter.
"""

from __future__ import annotations

import argparse
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

from bench import clean_pipeline, clean_tokens
from bench.clean_corpus import corpus
from uplift.core.prepare_section import Decontaminate, Dedup, Lines
from uplift.core.storage import write_atomically
from uplift.data.clean.decontaminate import Decontaminator
from uplift.data.clean.dedup import Deduplicator
from uplift.data.clean.lines import LineDeduplicator
from uplift.data.clean.step import CleaningStep
from uplift.study.machine import measure

RESULTS = Path(__file__).parent / "results"
PEER = Path(__file__).with_name("clean_peer.py")
CHUNK = 500
"""Documents that are handed over together."""


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the processor, and what came out."""
    begin = time.process_time()
    result = action()
    return time.process_time() - begin, result


def stages(step: CleaningStep, texts: Sequence[str]) -> tuple[float, float, int]:
    """Seconds of the sketches, seconds of settling and judging, and how many texts stay."""
    sketching, sketches = timed(lambda: [step.sketch(texts[at : at + CHUNK]) for at in range(0, len(texts), CHUNK)])

    def judged() -> int:
        step.settle(sketches)
        return sum(step.judge(row, text).text is not None for row, text in enumerate(texts))

    settling, left = timed(judged)
    return sketching, settling, left


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


def compared(asked: argparse.Namespace, words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The stages in memory, one process on one thread: the record, and which are slower than datatrove's."""
    texts, evaluation = corpus(asked.megabytes)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        documents = Path(folder) / "documents.jsonl"
        write_atomically(documents, "".join(json.dumps({"text": text}) + "\n" for text in texts))
        found: dict[str, dict[str, Any]] = {"uplift": ours(texts, evaluation, Path(folder))}
        for each in words:
            if asked.datatrove:
                found[f"datatrove, {each} words"] = theirs(asked.datatrove, documents, each)
    show(found, megabytes)
    peers = [each for name, each in found.items() if name != "uplift"]
    slower = [stage for each in peers for stage in ("exact", "signatures", "clusters") if found["uplift"][stage] > each[stage]]
    return {"megabytes": megabytes, "documents": len(texts), "seconds": found}, slower


def whole(asked: argparse.Namespace, words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The whole command with workers beside datatrove's executor."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    size = asked.peer_megabytes or asked.megabytes
    return clean_pipeline.benchmark(asked.megabytes, size, asked.workers, asked.datatrove or "", words, environment)


def tokens(asked: argparse.Namespace, words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """From rows to token ids."""
    return clean_tokens.benchmark(asked.megabytes, asked.workers)


def options() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.clean", description=__doc__)
    parser.add_argument("--datatrove", metavar="PYTHON", help="interpreter of an environment with datatrove")
    parser.add_argument("--megabytes", type=float, default=10.0)
    parser.add_argument("--words", choices=("spacy", "plain", "both"), default="both", help="how datatrove finds words")
    parser.add_argument("--name", help="name of the file under bench/results")
    parser.add_argument("--pipeline", action="store_true", help="the whole of `uplift data clean`, with workers")
    parser.add_argument("--tokens", action="store_true", help="from rows to token ids, beside the tokenizer alone")
    parser.add_argument("--peer-megabytes", type=float, help="with --pipeline: megabytes for datatrove (default: the same)")
    parser.add_argument("--workers", type=int, default=2, help="processes (--pipeline) or threads (--tokens) of each side")
    return parser.parse_args()


def main() -> int:
    """Measure, print and keep. 1 when a stage is slower than the other side's."""
    asked = options()
    words = ("plain", "spacy") if asked.words == "both" else (asked.words,)
    action, name = compared, "clean"
    if asked.pipeline or asked.tokens:
        action, name = (whole, "clean-pipeline") if asked.pipeline else (tokens, "clean-tokens")
    found, missed = action(asked, words)
    RESULTS.mkdir(parents=True, exist_ok=True)
    record = {"date": datetime.now(UTC).date().isoformat(), "machine": measure("cpu").describe(), **found}
    write_atomically(RESULTS / f"{asked.name or name}.json", json.dumps(record, indent=1) + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
