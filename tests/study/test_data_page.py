"""The page, the terminal and the advice about a data set: whole, safe whatever the rows hold, the same each time."""

from __future__ import annotations

import base64
import hashlib
import io
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from uplift.core.recipe_file import load_recipe
from uplift.core.source_section import FileSource
from uplift.core.storage import write_atomically
from uplift.data.explore.findings import Inspection
from uplift.data.explore.intake import take_in
from uplift.data.explore.survey import Reader, survey
from uplift.data.sources import stream_source
from uplift.study.data_advice import advice_of, per_cent, recipe_of
from uplift.study.data_page import render_data_page
from uplift.study.data_terminal import render_data_terminal
from uplift.testing.tiny import tiny_rows, tiny_tokenizer, write_rows

EVIL = [
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    '"><img src=x onerror=alert(3)>',
    "'onmouseover='alert(4)",
    "</title></svg><svg onload=alert(5)>",
    "</style><style>body{display:none}</style>",
    "\u202egnp.exe \u2066hidden\u2069",
    "<!-- ]]> &lt;script&gt; -->",
    "</textarea></pre><iframe src=javascript:alert(6)></iframe>",
]


def inspected(path: Path, test: Path | None = None, **options: Any) -> Inspection:
    taken = take_in(stream_source(FileSource(path=str(path)), Path()), **options)
    others = {"test": take_in(stream_source(FileSource(path=str(test)), Path()), aim=taken.aim)} if test else {}
    found = survey(taken, others, str(path), Reader("tiny", tiny_tokenizer()), command="uplift data inspect rows.jsonl")
    recipe = recipe_of(found, str(path), {name: str(test) for name in others})
    return found.model_copy(update={"advice": advice_of(found), "recipe": recipe})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("inspect")


@pytest.fixture(scope="module")
def evil(folder: Path) -> Inspection:
    """Hostile text in texts, labels and column names, in every place that the page shows."""
    rng = random.Random(0)
    rows: list[dict[str, Any]] = [{**row, "<b>column</b>": EVIL[0]} for row in tiny_rows("classify", 80)]
    for index, text in enumerate(EVIL):
        rows += [{"text": f"{text} {' '.join(rng.choices(EVIL, k=2))}", "label": EVIL[index % 2]} for _ in range(3)]
        rows.append({"text": text.upper(), "label": EVIL[(index + 1) % 2]})
    rows += [{"text": EVIL[index % len(EVIL)] * 40, "label": EVIL[index % 2]} for index in range(12)]
    rows.append({"text": "", "label": EVIL[0]})
    name = "rows <script>alert(7)</script>.jsonl".replace("/", "")
    return inspected(write_rows(folder / name, rows))


@pytest.fixture(scope="module")
def plain(folder: Path) -> Inspection:
    return inspected(write_rows(folder / "plain.jsonl", tiny_rows("classify", 120)))


class Elements(HTMLParser):
    """Every element with its attributes, and the text of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self._open: list[str] = []
        self.unbalanced: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "col"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in self.raw:
            self.raw[self._open[-1]].append(data)


ALLOWED = frozenset(
    {
        *("html", "head", "meta", "title", "style", "body", "main", "header", "nav", "section", "footer", "script", "button"),
        *("h1", "h2", "h3", "p", "a", "ul", "li", "dl", "dt", "dd", "div", "span", "b", "i", "code", "pre", "strong", "small"),
        *("mark", "table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "details", "summary"),
        *("svg", "g", "rect", "line", "text", "polyline", "circle"),
    }
)


def test_nothing_of_the_rows_becomes_markup(evil: Inspection) -> None:
    page = render_data_page(evil)
    elements = Elements(page)
    assert {tag for tag, _ in elements.found} <= ALLOWED and not elements.unbalanced
    attributes = {name for _, attrs in elements.found for name in attrs}
    assert not {name for name in attributes if name.startswith("on")} and not attributes & {"src", "srcset", "action"}
    assert all(attrs["href"].startswith("#") for tag, attrs in elements.found if attrs.get("href"))
    assert [tag for tag, _ in elements.found].count("script") == 1 and [tag for tag, _ in elements.found].count("style") == 1
    # It is shown, as text and in descriptions.
    inside = {name for _, attrs in elements.found for name, value in attrs.items() if "alert(" in (value or "")}
    assert "alert(" in page and inside <= {"title", "aria-label"}
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", page)


def test_only_the_own_script_may_run_and_nothing_is_fetched(evil: Inspection) -> None:
    page = render_data_page(evil)
    elements = Elements(page)
    policy = next(attrs["content"] or "" for tag, attrs in elements.found if attrs.get("http-equiv"))
    (script,) = elements.raw["script"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'") and f"script-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy.partition("script-src")[2] and "innerHTML" not in script
    addresses = set(re.findall(r"https?://[^\s\"'<]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # a name, not an address


def test_the_same_data_gives_the_same_page(evil: Inspection, folder: Path) -> None:
    path = next(folder.glob("rows*"))
    assert render_data_page(inspected(path)) == render_data_page(evil)


def test_findings_survive_json(evil: Inspection) -> None:
    assert Inspection.model_validate_json(evil.model_dump_json()) == evil
    schema = Inspection.model_json_schema()
    assert set(schema["properties"]) == set(evil.model_dump()) and schema["additionalProperties"] is False


def test_every_row_is_accounted_for(evil: Inspection) -> None:
    over = evil.overview
    assert over.rows_in == over.rows + over.quarantined == sum(part.rows for part in evil.splits.parts) + over.quarantined
    assert sum(rule.count for rule in over.bad) == over.quarantined == 1
    assert sum(evil.lengths.characters.counts) == over.rows


def test_a_good_data_set_has_nothing_to_fix(plain: Inspection) -> None:
    assert {advice.weight for advice in plain.advice} <= {"good", "look"}
    assert any(advice.topic == "labels" and advice.weight == "look" for advice in plain.advice)  # too easy: one word tells
    assert "prepare" not in plain.recipe


def test_problems_are_put_first_and_their_steps_into_the_recipe(folder: Path) -> None:
    rows = tiny_rows("classify", 200)
    rows += rows[:20] + [{**rows[30], "label": rows[31]["label"]}, {**rows[32], "label": rows[33]["label"]}]
    rows[40]["text"] += " write to anna.smith77@mail-host.org"
    for index in range(60, 80):
        rows[index]["text"] = rows[index]["text"].replace(" was ", " wasnâ€™t ")
    test = write_rows(folder / "test.jsonl", tiny_rows("classify", 30, seed=5) + rows[100:110])
    found = inspected(write_rows(folder / "problems.jsonl", rows), test)
    assert [advice.weight for advice in found.advice] == sorted(
        (advice.weight for advice in found.advice), key=("fix", "look", "good").index
    )
    fixes = {advice.topic for advice in found.advice if advice.weight == "fix"}
    assert {"splits", "duplicates", "labels", "texts"} <= fixes
    recipe = load_recipe(_saved(folder, found.recipe))
    assert [step.use for step in recipe.data.prepare] == ["repair", "pii", "dedup", "decontaminate"]
    assert recipe.data.split.test == 0 and recipe.data.test is not None
    assert found.labels is not None and found.labels.conflicting == 4
    page = render_data_page(found)
    assert "anna.smith" not in page and "anna.smith" not in found.model_dump_json() and "[email]" in page


@pytest.mark.parametrize("kind", ["classify", "chat", "text"])
def test_the_recipe_loads(folder: Path, kind: str) -> None:
    found = inspected(write_rows(folder / f"{kind} rows: #1.jsonl", tiny_rows(kind, 60)))  # type: ignore[arg-type]
    recipe = load_recipe(_saved(folder, found.recipe))
    assert recipe.task.use == kind and found.tokens and recipe.train.max_length == found.tokens.suggested_length


def test_chats_show_what_is_learned(folder: Path) -> None:
    found = inspected(write_rows(folder / "chat.jsonl", tiny_rows("chat", 40)))
    assert found.chat and found.chat.roles == {"assistant": 40, "user": 40} and found.chat.turns == {2: 40}
    assert found.learning and len(found.learning.samples) == 3 and not found.learning.problems
    for sample in found.learning.samples:
        learned = "".join(text for text, is_learned in sample.stretches if is_learned)
        assert learned.endswith("<|im_end|>") and "<|im_start|>user" not in learned
    marks = re.findall(r"<mark>(.*?)</mark>", render_data_page(found))
    assert len(marks) == 3 and all(mark.endswith("&lt;|im_end|&gt;") for mark in marks)


def test_the_terminal_summary_fits_one_screen(evil: Inspection, plain: Inspection) -> None:
    for found in (evil, plain):
        console = Console(file=io.StringIO(), width=100, force_terminal=False)
        render_data_terminal(found, console, Path("inspect.html"))
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert len(text.splitlines()) <= 36 and "page: inspect.html" in text and "\u202e" not in text
        assert f"{found.overview.rows_in:,} read" in text


def test_small_shares_are_not_nothing() -> None:
    assert [per_cent(share) for share in (0, 0.0004, 0.004, 0.5, 0.9996, 1)] == [
        "0 %", "< 0.1 %", "0.4 %", "50.0 %", "> 99.9 %", "100 %",
    ]  # fmt: skip


def _saved(folder: Path, recipe: str) -> Path:
    write_atomically(folder / "recipe.yaml", recipe)
    return folder / "recipe.yaml"
