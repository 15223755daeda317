"""The page: self-contained, complete, safe against text from data, legible for machines that read it aloud."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest

from uplift.core.report import CommonReport, ComparisonReport, Curve, Report
from uplift.study.charts import INKS, calibration_chart, score_against_cost, training_curves
from uplift.study.markup import Html, element, join, prose, text
from uplift.study.report_html import render_html
from uplift.testing.reports import sample_comparison, sample_report

ATTACKS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg/onload=alert(1)>",
    "</title></style><script>alert(1)</script>",
    "</text></svg><script>alert(1)</script>",
    "javascript:alert(1)",
    "]]><script>alert(1)</script>",
    "${alert(1)} {{7*7}} &lt;script&gt;",
    "`</code><script>alert(1)</script>`",
    "\x00\x1b[31m\u202eevil\ud800",
)
VOID = {"meta", "br", "col", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Reads a page strictly: every element is closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def poisoned(value: Any, attack: str) -> Any:
    """Every string of a JSON value with ``attack`` added; words that choose what is drawn stay."""
    if isinstance(value, dict):
        keep = {"kind", "status", "metric", *(["name"] if "steps" in value else [])}
        return {key: part if key in keep and isinstance(part, str) else poisoned(part, attack) for key, part in value.items()}
    if isinstance(value, list):
        return [poisoned(part, attack) for part in value]
    return value + attack if isinstance(value, str) else value


@pytest.fixture(scope="module")
def comparison_page() -> str:
    return render_html(sample_comparison(failed=True))


@pytest.fixture(scope="module")
def run_page() -> str:
    return render_html(sample_report())


def test_the_comparison_page_says_everything(comparison_page: str) -> None:
    report, shown = sample_comparison(failed=True), Page(comparison_page).text
    assert "costs more and is not shown to be better" in shown
    for arm in report.arms:
        assert arm.name in shown
    assert "loss was not finite for 3 steps in a row" in shown
    for words in (
        "86.1 %",
        "84.0 to 88.1",
        "+22.7",
        "p (Holm)",
        "no difference shown",
        "proven",
        "10,662 rows in",
        "13 quarantined",
    ):
        assert words in shown, words
    for words in ("at chance", "uplift compare recipes/reviews-bakeoff.yaml", "batch_tokens: 4096", "torch", "bad_step"):
        assert words in shown, words
    assert comparison_page.count('<svg xmlns="http://www.w3.org/2000/svg"') == 1 + 4


def test_the_run_page_says_everything(run_page: str) -> None:
    shown = Page(run_page).text
    assert "reviews reaches accuracy 86.8 % on 1,066 held-out rows, 23.4 points better than the base." in shown
    for words in ("63.4 %", "macro F1", "label_smoothing", "85 s → 91 s", "damaged_checkpoint", "calibration error"):
        assert words in shown, words
    assert run_page.count('<svg xmlns="http://www.w3.org/2000/svg"') == 2


@pytest.mark.parametrize("page", ["comparison_page", "run_page"])
def test_nothing_is_fetched_and_nothing_runs(page: str, request: pytest.FixtureRequest) -> None:
    source = request.getfixturevalue(page)
    tags = Page(source).tags
    names = {tag for tag, _ in tags}
    assert not names & {"script", "link", "iframe", "img", "object", "embed", "form", "a", "base", "foreignobject"}
    for _, attributes in tags:
        assert not any(name.startswith("on") for name in attributes)
        assert not set(attributes) & {"href", "src", "xlink:href", "action", "srcset"}
    assert "@import" not in source and not re.findall(r"url\((?!#)", source)
    policy = next(
        attributes["content"] for tag, attributes in tags if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None and "default-src 'none'" in policy and "script-src" not in policy


@pytest.mark.parametrize("page", ["comparison_page", "run_page"])
def test_the_page_can_be_read_aloud(page: str, request: pytest.FixtureRequest) -> None:
    tags = Page(request.getfixturevalue(page)).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for tag, attributes in tags:
        if tag == "svg":
            assert attributes["role"] == "img"
            assert set((attributes["aria-labelledby"] or "").split()) <= set(ids)
        if tag == "table":
            assert attributes.get("aria-label")
        if tag == "th":
            assert attributes.get("scope") in ("col", "row")
    assert ("html", {"lang": "en"}) in tags
    assert [tag for tag, _ in tags].count("h1") == 1


@pytest.mark.parametrize("page", ["comparison_page", "run_page"])
def test_every_chart_colour_has_a_value_for_both_schemes(page: str, request: pytest.FixtureRequest) -> None:
    source = request.getfixturevalue(page)
    used = set(re.findall(r'(?:fill|stroke)="(#[0-9a-fA-F]+)"', source.partition("</style>")[2]))
    assert used and used <= set(INKS.values())
    for colour in INKS.values():
        assert f'[fill="{colour}"]' in source and f'[stroke="{colour}"]' in source
    light, dark = source.partition("prefers-color-scheme: dark")[::2]
    names = set(re.findall(r"(--[a-z-]+):", light.partition(":root")[2]))
    assert names == set(re.findall(r"(--[a-z-]+):", dark.partition("* {")[0]))


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("make", [sample_report, lambda: sample_comparison(failed=True)])
def test_text_from_data_is_never_markup(attack: str, make: Callable[[], Report | ComparisonReport]) -> None:
    report = make()
    content = report.model_dump(mode="json")
    tame = Page(render_html(type(report).model_validate(poisoned(content, "harmless"))))
    page = render_html(type(report).model_validate(poisoned(content, attack)))
    seen, wanted = (
        [(tag, set(given)) for tag, given in one.tags if tag not in ("code", "tspan")] for one in (Page(page), tame)
    )
    assert seen == wanted
    assert "<script" not in page.lower()
    assert "\x1b" not in page and "\u202e" not in page
    page.encode("utf-8")


def test_the_same_report_gives_the_same_page() -> None:
    assert render_html(sample_comparison()) == render_html(sample_comparison())


def bare(report: Report | ComparisonReport) -> Report | ComparisonReport:
    keep = {"name", "kind", "status", "cost", "arms", "recommendation"}
    content = {key: value for key, value in report.model_dump(mode="json").items() if key in keep}
    content["cost"] = {"seconds": 0.0, "tokens": 0, "peak_memory_bytes": 0}
    if isinstance(report, ComparisonReport):
        content["arms"] = [{"name": arm["name"], "kind": "trained", "status": "failed"} for arm in content["arms"]]
        content["recommendation"] = {"arm": None, "text": "No arm finished, so nothing can be recommended."}
    return type(report).model_validate(content)


@pytest.mark.parametrize("status", ["running", "finished", "stopped", "failed"])
@pytest.mark.parametrize("make", [sample_report, sample_comparison])
def test_a_report_with_almost_nothing_in_it(make: Callable[[], Report | ComparisonReport], status: str) -> None:
    report = bare(make()).model_copy(update={"status": status, "reason": "signal 15 at step 12"})
    page = Page(render_html(report))
    assert status in page.text
    if isinstance(report, Report) and status in ("stopped", "failed"):
        assert f"The run {status}: signal 15 at step 12" in page.text


def test_one_number_that_is_not_finite_does_not_break_the_page() -> None:
    content = sample_comparison().model_dump(mode="json")
    content["arms"][2]["score"] = {"value": None, "low": None, "high": None}
    content["arms"][1]["curves"] = [{"name": "loss", "steps": [1, 2, 3], "values": [1.0, None, 0.5]}]
    content["tests"][0]["difference"] = None
    Page(render_html(ComparisonReport.model_validate(content)))


def test_charts_say_nothing_when_there_is_nothing() -> None:
    arms = sample_comparison().arms
    assert score_against_cost(arms[:1], "accuracy", None) is None
    assert training_curves("x", ()) is None
    assert training_curves("x", (Curve(name="loss", steps=(1,), values=(None,)),)) is None
    assert calibration_chart(()) is None


def test_no_difference_is_said_in_words() -> None:
    content = sample_report().model_dump(mode="json")
    content["evaluation"]["difference"] |= {"value": 0.004, "low": -0.01, "high": 0.02}
    assert "no difference from the base that this data can show" in render_html(Report.model_validate(content))
    content["evaluation"]["difference"] |= {"value": -0.05, "low": -0.08, "high": -0.02}
    assert "5.0 points worse than the base" in render_html(Report.model_validate(content))


def test_many_classes_do_not_flood_the_page() -> None:
    labels = [f"class-{index}" for index in range(60)]
    content = sample_report().model_dump(mode="json")
    content["evaluation"]["confusion"] = {"labels": labels, "counts": [[1] * 60] * 60}
    page = Page(render_html(Report.model_validate(content)))
    assert "60 classes: the counts are in report.json." in page.text
    assert len(page.tags) < 1500


def test_markup_values() -> None:
    assert element("p", "a<b", None, ["c", Html("<i></i>")], class_="x", data_y=1, hidden=True, title=None) == (
        '<p class="x" data-y="1" hidden>a&lt;b' + "c<i></i></p>"
    )
    assert element("meta", charset="utf-8") == '<meta charset="utf-8">'
    assert join("<", 3, 0) == "&lt;30"
    assert text('"&') == "&quot;&amp;"
    assert prose("take `a<b` now") == "take <code>a&lt;b</code> now"
    assert prose("an odd ` stays") == "an odd ` stays"


def test_reports_know_their_common_parts() -> None:
    assert issubclass(Report, CommonReport) and issubclass(ComparisonReport, CommonReport)
