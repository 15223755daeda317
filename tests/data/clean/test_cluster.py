"""Cleaning on datatrove's executors leaves the documents, the order and the counts of one process."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers.jsonl import JsonlWriter

from uplift.core.errors import RecipeError, ResourceError, UsageError
from uplift.core.prepare_section import Decontaminate, Dedup, Filter, Lines, Pii, Quality, Repair, Step
from uplift.core.source_section import FileSource
from uplift.core.values import Origin
from uplift.data.clean.cluster import Stage, account, stages
from uplift.data.clean.columns import Columns
from uplift.data.clean.output import Collected
from uplift.data.clean.pipeline import Layout, Outcome, Pipeline, Record
from uplift.data.clean.steps import plan_steps

FILES, TASKS, ROWS = 7, 3, 60
WORDS = [
    "river",
    "stone",
    "garden",
    "winter",
    "letter",
    "morning",
    "window",
    "quiet",
    "harbour",
    "copper",
    "field",
    "lantern",
    "meadow",
    "silver",
    "thunder",
    "candle",
]
MENU = "Home | About us | Contact | Terms and conditions of this site"


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=12)).capitalize() + "."


@pytest.fixture(scope="module")
def texts() -> list[list[str]]:
    """Of each file its documents: with copies, near copies and repeated lines across files, addresses, and odd characters."""
    rng = random.Random(5)
    known = ["\n".join(sentence(rng) for _ in range(5)) for _ in range(ROWS)]

    def one() -> str:
        text, kind = rng.choice(known), rng.random()
        if kind < 0.2:
            return text.replace(".", "!", 1)
        if kind < 0.3:
            return f"{MENU}\n{text}"
        if kind < 0.4:
            return f"{text}\nWrite to {rng.choice(WORDS)}.{rng.choice(WORDS)}@harbour-post.org"
        if kind < 0.5:
            return "\n".join(sentence(rng) for _ in range(5)) + " caf\u00c3\u00a9\u00a0"
        return "short" if kind < 0.55 else text

    return [[one() for _ in range(rng.randint(10, 50))] for _ in range(FILES)]


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory, texts: list[list[str]]) -> list[Step]:
    place = tmp_path_factory.mktemp("evaluation") / "test.jsonl"
    place.write_text(json.dumps({"text": texts[0][0]}) + "\n", encoding="utf-8")
    return [
        Repair(),
        Pii(),
        Lines(repeats=2),
        Filter(rules=["c4"], limits={"c4_sentences": 2}),
        Dedup(),
        Decontaminate(against=[FileSource(path=str(place))]),
    ]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, texts: list[list[str]]) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number, rows in enumerate(texts):
        lines = [json.dumps({"text": text, "id": f"{number}-{row}"}) for row, text in enumerate(rows)]
        (folder / f"{number}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def on_executors(made: Sequence[Stage], place: Path, workers: int = 1) -> None:
    before = None
    for number, stage in enumerate(made):
        before = LocalPipelineExecutor(
            stage.pipeline,
            tasks=stage.tasks,
            workers=min(workers, stage.tasks),
            logging_dir=str(place / f"logs-{number}"),
            depends=before,
        )
    assert before is not None
    before.run()


def staged(sections: Sequence[Step], corpus: Path, place: Path, tasks: int = TASKS) -> list[Stage]:
    writer = JsonlWriter(str(place / "clean"), output_filename="${rank}.jsonl", compression=None)
    return stages(sections, reader=JsonlReader(str(corpus)), writer=writer, folder=str(place / "between"), tasks=tasks)


def written(place: Path) -> list[tuple[str, str]]:
    rows = [json.loads(line) for file in sorted((place / "clean").iterdir()) for line in file.read_text().splitlines()]
    return [(row["id"], row["text"]) for row in rows]


def in_one_process(sections: Sequence[Step], texts: list[list[str]], tasks: int) -> tuple[Outcome, list[tuple[str, str]]]:
    """The same documents in the order in which the tasks get them."""
    order = [number for task in range(tasks) for number in range(task, FILES, tasks)]
    rows = [(f"{number}-{row}", text) for number in order for row, text in enumerate(texts[number])]
    records = [Record(0, {"id": name, "text": text}, Origin("corpus", at)) for at, (name, text) in enumerate(rows, start=1)]
    outlet = Collected()
    outcome = Pipeline(plan_steps(sections, Path()), [Layout(Columns(("text",)))]).run(records, outlet)
    return outcome, [(str(row.values["id"]), str(row.values["text"])) for row in outlet.rows]


@pytest.mark.parametrize("tasks", [1, TASKS, FILES + 2])
def test_the_result_is_that_of_one_process(
    tasks: int, sections: list[Step], corpus: Path, texts: list[list[str]], tmp_path: Path
) -> None:
    on_executors(staged(sections, corpus, tmp_path, tasks), tmp_path)
    wanted, rows = in_one_process(sections, texts, tasks)
    assert written(tmp_path) == rows
    found = account(str(tmp_path / "between"))
    assert found.steps == wanted.steps and all(step.dropped or step.changes for step in found.steps)
    for name in ("rows_in", "rows_kept", "rows_dropped", "characters_in", "characters_out"):
        assert getattr(found, name) == getattr(wanted, name)


def test_every_removed_document_can_be_looked_at(sections: list[Step], corpus: Path, tmp_path: Path) -> None:
    (corpus / "empty.jsonl").write_text(json.dumps({"text": "\t ", "id": "blank"}) + "\n")
    try:
        on_executors(staged(sections, corpus, tmp_path), tmp_path)
    finally:
        (corpus / "empty.jsonl").unlink()
    files = (tmp_path / "between" / "removed").iterdir()
    removed = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    found = account(str(tmp_path / "between"))
    assert len(removed) == found.rows_dropped + found.rows_quarantined
    assert found.reasons == {"empty_text": 1} and found.rows_quarantined == 1
    assert {row["step"] for row in removed} == {"reading", "lines", "filter", "dedup", "decontaminate"}
    assert {row["id"] for row in removed}.isdisjoint(name for name, _ in written(tmp_path))


def test_half_a_character_is_put_aside(corpus: Path, tmp_path: Path) -> None:
    (stage,) = staged([Repair()], corpus, tmp_path)
    broken = [Document("half of a pair \ud83d stands here.", "broken"), Document("A whole one.", "whole")]
    assert [document.id for document in stage.pipeline[1].run(broken)] == ["whole"]
    assert account(str(tmp_path / "between")).rows_quarantined == 1
    assert '"id": "broken"' in (tmp_path / "between" / "removed" / "0-00000.jsonl").read_text(encoding="utf-8")


@pytest.mark.slow
def test_several_processes(sections: list[Step], corpus: Path, texts: list[list[str]], tmp_path: Path) -> None:
    on_executors(staged(sections, corpus, tmp_path), tmp_path, workers=2)
    assert written(tmp_path) == in_one_process(sections, texts, TASKS)[1]


def test_a_stage_too_early_is_told_in_words(sections: list[Step], corpus: Path, tmp_path: Path) -> None:
    first, decision, second, *_ = staged(sections, corpus, tmp_path)
    with pytest.raises(ResourceError, match="not in the folder"):
        list(decision.pipeline[0].run(None))
    with pytest.raises(ResourceError, match="no account"):
        account(str(tmp_path / "between"))
    on_executors([first, decision], tmp_path)
    with pytest.raises(ResourceError, match="not whole"):
        account(str(tmp_path / "between"))
    with pytest.raises(UsageError, match="runs in 4 tasks, the pass before it ran in 3"):
        list(second.pipeline[0].run(None, 0, 4))


def test_a_model_has_no_place_on_the_tasks(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="quality"):
        staged([Quality.model_validate({"model": "some/folder", "most": 100.0})], corpus, tmp_path)
