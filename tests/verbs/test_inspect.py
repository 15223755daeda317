"""``uplift data inspect``: the command, its page and its JSON."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from uplift.cli.main import main
from uplift.core.errors import DataError, UpliftError, UsageError
from uplift.core.recipe import HfModel
from uplift.data.explore.findings import Inspection
from uplift.model.opening import open_model
from uplift.testing.tiny import tiny_causal, tiny_encoder, tiny_rows, write_rows
from uplift.verbs.inspect import inspect, mean_embeddings


@pytest.fixture(scope="module")
def causal(tmp_path_factory) -> str:
    return str(tiny_causal(tmp_path_factory.mktemp("causal")))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    return str(tiny_encoder(tmp_path_factory.mktemp("encoder")))


def test_the_command_writes_a_page_and_prints_json(tmp_path: Path, causal: str, capsys) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", tiny_rows("classify", 80))
    page = tmp_path / "out" / "page.html"
    assert main(["data", "inspect", str(rows), "--model", causal, "--output", str(page), "--json"]) == 0
    found = Inspection.model_validate(json.loads(capsys.readouterr().out))
    assert found.overview.rows == 80 and found.tokens and found.tokens.tokenizer == causal
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert main(["data", "inspect", str(rows), "--model", causal, "--output", str(page)]) == 0
    told = capsys.readouterr().out
    assert "80 read = 80 used" in told and "page.html" in told.replace("\n", "")


def test_parts_and_limits_reach_the_findings(tmp_path: Path, causal: str) -> None:
    rows = tiny_rows("text", 60)
    train, test = write_rows(tmp_path / "train.jsonl", rows), write_rows(tmp_path / "test.jsonl", rows[:10])
    found = inspect(str(train), parts={"test": str(test)}, model=causal, limit=50)
    assert [(part.part, part.rows) for part in found.splits.parts] == [("train", 50), ("test", 10)]
    assert found.splits.leaks[0].normalized == 10 and any("--limit" in note for note in found.notes)


def test_an_encoder_draws_the_map(tmp_path: Path, encoder: str) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", tiny_rows("classify", 60))
    found = inspect(str(rows), model=encoder, device="cpu")
    assert found.topics and found.topics.by == f"embeddings of {encoder}" and len(found.topics.points) == 60
    assert found.learning and not found.learning.template


def test_embeddings_are_the_mean_of_each_text_alone(encoder: str) -> None:
    model = open_model(HfModel(id=encoder), head="class", base_dir=Path(), device=torch.device("cpu"), seed=0)
    texts = [row["text"] for row in tiny_rows("text", 20)]
    together = mean_embeddings(model, texts)
    alone = np.concatenate([mean_embeddings(model, [text]) for text in texts])
    assert together.shape == (20, 32) and np.abs(together - alone).max() <= 1e-5
    inputs = model.tokenizer(texts[0], return_tensors="pt")
    hidden = model.pretrained.base_model(**inputs).last_hidden_state[0].mean(dim=0)
    assert np.abs(hidden.detach().numpy() - together[0]).max() <= 1e-5


def test_a_folder_of_documents_is_looked_at(tmp_path: Path, causal: str) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for index, row in enumerate(tiny_rows("text", 40)):
        (folder / f"{index:02d}.txt").write_text(row["text"], encoding="utf-8")
    found = inspect(str(folder), model=causal)
    assert found.overview.goal == "text" and found.overview.rows == 40


def test_long_plain_texts_lose_nothing_and_long_labelled_ones_their_end(tmp_path: Path, causal: str) -> None:
    long = " ".join(row["text"] for row in tiny_rows("text", 300))
    plain = write_rows(tmp_path / "plain.jsonl", [{"text": f"{index} {long}"} for index in range(4)])
    found = inspect(str(plain), model=causal)
    assert found.tokens and found.tokens.passages and found.tokens.suggested_cut == 1.0 and found.learning
    assert not found.learning.problems and found.learning.rows > 4
    assert any("nothing is cut off" in advice.text for advice in found.advice)
    labelled = [{"text": f"{index} {long}", "label": "ab"[index % 2]} for index in range(20)]
    found = inspect(str(write_rows(tmp_path / "labelled.jsonl", labelled)), model=causal)
    assert found.tokens and not found.tokens.passages and found.learning
    assert any("of the rows are cut" in advice.text for advice in found.advice)


def test_a_file_in_another_encoding(tmp_path: Path, causal: str) -> None:
    lines = "".join(f'"Größe {i} naïve words",{["gut", "böse"][i % 2]}\n' for i in range(60)) + "plain words,gut\n" * 40
    path = tmp_path / "a.csv"
    path.write_bytes(("text,label\n" + lines).encode("cp1252"))
    told = inspect(str(path), model=causal).advice[0]
    assert told.weight == "fix" and "--encoding cp1252" in told.todo
    found = inspect(str(path), model=causal, encoding="cp1252")
    assert found.overview.quarantined == 0 and ", encoding: cp1252}" in found.recipe


def test_mistakes_are_named(tmp_path: Path, causal: str) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", tiny_rows("classify", 20))
    with pytest.raises(DataError, match="no such file"):
        inspect(str(tmp_path / "row.jsonl"), model=causal)
    with pytest.raises(DataError, match="no column `txt`"):
        inspect(str(rows), model=causal, column="txt")
    with pytest.raises(Exception, match="is not a model"):
        inspect(str(rows), model=str(tmp_path))
    assert main(["data", "inspect", str(rows), "--limit", "0"]) == UsageError.exit_code


PIECES = (
    *("good", "bad", "日本語", "😀", "\u200b", "\u202e", "ﬁ", "x" * 300, "1", "nan"),
    *("", "  ", "\n", "<b>hi</b>", "a@b.co", "def f(): 1"),
)
LABELS: tuple[tuple[object, ...], ...] = (
    ("a", "b"),
    (0, 1),
    ("only",),
    (None, "a"),
    tuple(range(40)),
    (True, False),
    (1.5, 2.5),
    ("", "x"),
    (["l"], ["m"]),
)


def odd_rows(rng: random.Random) -> list[dict[str, object]]:
    """Few rows made of few odd pieces, as texts or as chats, with any labels or none."""
    pieces, labels, chats = (
        rng.sample(PIECES, rng.randint(1, len(PIECES))),
        rng.choice((*LABELS, None, None)),
        rng.random() < 0.3,
    )
    rows: list[dict[str, object]] = []
    for _ in range(rng.choice((1, 2, 5, 31, 60))):
        words = rng.choice((" ", "")).join(rng.choices(pieces, k=rng.choice((0, 1, 1, 2, 5, 30))))
        turns = [{"role": rng.choice(("user", "system", "assistant")), "content": words} for _ in range(rng.randint(0, 4))]
        rows.append({"messages": turns} if chats else {"text": words})
        if labels is not None:
            rows[-1]["label"] = rng.choice(labels)
    return rows


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", range(10))
def test_odd_data_gives_a_page_or_one_clear_error(tmp_path: Path, causal: str, seed: int) -> None:
    pages = 0
    for number in range(12):
        rng = random.Random(f"{seed} {number}")
        rows = write_rows(tmp_path / "rows.jsonl", odd_rows(rng))
        parts = {"test": str(rows)} if rng.random() < 0.3 else {}
        try:
            found = inspect(str(rows), parts=parts, model=causal, output=tmp_path / "page.html")
        except UpliftError as error:
            assert error.fix or error.why
            continue
        pages += 1
        assert Inspection.model_validate_json(found.model_dump_json()) == found
    assert pages > 6
