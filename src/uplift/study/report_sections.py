"""The sections that a run's page and a comparison's page share, each a function from report objects to HTML."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ruamel.yaml import YAML

from uplift.core.report import (
    ClassScores,
    CommonReport,
    Confusion,
    Cost,
    DataReport,
    EffectReport,
    EventSummary,
    Number,
    Robustness,
    WrittenSample,
)
from uplift.study.markup import Html, element, join, prose
from uplift.study.prepare_table import prepare_table
from uplift.study.robustness_table import robustness_table
from uplift.study.word_table import WordTable
from uplift.study.wording import (
    GLOSSARY,
    rows_in_words,
    show_bytes,
    show_count,
    show_number,
    show_ratio,
    show_score,
    show_seconds,
)

MOST_LABELS = 25
"""Classes up to which a confusion matrix is drawn."""


def section(title: str, lead: str, *content: object) -> Html | None:
    """A titled section; None when there is nothing to show in it."""
    body = join(*content)
    if not body:
        return None
    return element("section", element("h2", title), element("p", prose(lead), class_="lead") if lead else None, body)


def table(head: Sequence[object], rows: Iterable[Html], caption: str) -> Html:
    """A table in a box that scrolls sideways; ``head`` holds texts or ready ``th`` elements."""
    cells = [cell if isinstance(cell, Html) else element("th", cell, scope="col") for cell in head]
    inside = element("thead", element("tr", *cells)) + element("tbody", *rows)
    return element(
        "div",
        element("table", Html(inside), aria_label=caption),
        class_="scroll",
        role="region",
        aria_label=caption,
        tabindex="0",
    )


def number_head(*content: object) -> Html:
    """A column head over right-aligned numbers."""
    return element("th", *content, class_="number", scope="col")


def number(*content: object, **attributes: object) -> Html:
    """A right-aligned cell with digits of equal width."""
    return element("td", *content, class_=f"number {attributes.pop('class_', '')}".strip(), **attributes)


def row_head(*content: object) -> Html:
    """The head cell of a row."""
    return element("th", *content, scope="row")


def sub(content: object) -> Html | None:
    """A second, quieter line in a cell."""
    return element("span", content, class_="sub") if content else None


def tile(term: object, big: object, small: object = None) -> Html:
    """One key figure."""
    quiet = element("dd", small, class_="small") if small else None
    return element("div", element("dt", term), element("dd", big, class_="big"), quiet, class_="tile")


def interval_bar(
    value: Number,
    low: Number,
    high: Number,
    domain: tuple[float, float],
    *,
    reference: Number = None,
    seeds: Sequence[Number] = (),
    spoken: str,
) -> Html | None:
    """A value and its interval on a common scale, with single seeds as dots and a dashed reference line."""
    if value is None:
        return None

    def at(x: float) -> str:
        return f"{100 * min(1.0, max(0.0, (x - domain[0]) / (domain[1] - domain[0] or 1))):.2f}%"

    def width(first: float, last: float) -> str:
        return f"{100 * (last - first) / (domain[1] - domain[0] or 1):.2f}%"

    ends = (value if low is None else low, value if high is None else high)
    return element(
        "span",
        element("i", class_="base"),
        element("i", class_="reference", style=f"left:{at(reference)}") if reference is not None else None,
        element("i", class_="range", style=f"left:{at(ends[0])};width:{width(*ends)}"),
        (element("i", class_="seed", style=f"left:{at(seed)}") for seed in seeds if seed is not None)
        if len(seeds) > 1
        else None,
        element("i", class_="point", style=f"left:{at(value)}"),
        class_="bar",
        role="img",
        aria_label=spoken,
    )


def common_domain(values: Iterable[Number]) -> tuple[float, float]:
    """The range of all numbers with a small margin."""
    known = [value for value in values if value is not None]
    if not known:
        return 0.0, 1.0
    margin = (max(known) - min(known)) * 0.04 or 0.01
    return min(known) - margin, max(known) + margin


# -- shared sections ---------------------------------------------------------------------------------------------------
def confusion_table(confusion: Confusion, caption: str) -> Html:
    """True classes down, predicted classes across; shade is the share of the true class."""
    if len(confusion.labels) > MOST_LABELS:
        return element("p", f"{len(confusion.labels)} classes: the counts are in report.json.", class_="muted small")
    rows = []
    for index, (label, counts) in enumerate(zip(confusion.labels, confusion.counts, strict=True)):
        cells = []
        for column, count in enumerate(counts):
            share = count / sum(counts) if sum(counts) else 0.0
            kind = ("" if column == index else "error ") + ("strong" if share > 0.55 else "")
            cells.append(element("td", f"{count:,}", style=f"--share:{0.06 + 0.9 * share:.3f}", class_=kind.strip() or None))
        rows.append(element("tr", row_head(label), *cells))
    head = element(
        "tr",
        element("td", class_="corner"),
        *(element("th", label, scope="col") for label in confusion.labels),
    )
    tight = "confusion tight" if len(confusion.labels) > 6 else "confusion"
    inside = element("thead", head) + element("tbody", *rows)
    return element("div", element("table", Html(inside), class_=tight, aria_label=caption), style="overflow-x:auto")


def class_table(classes: Sequence[ClassScores], caption: str) -> Html | None:
    """Precision, recall, F1 and rows of each class."""
    if not classes:
        return None
    rows = (
        element(
            "tr",
            row_head(one.label),
            *(number(show_score("f1", value)) for value in (one.precision, one.recall, one.f1)),
            number(f"{one.support:,}"),
        )
        for one in classes
    )
    return table(["Class", *(number_head(name) for name in ("Precision", "Recall", "F1", "Test rows"))], rows, caption)


def robustness_section(robustness: Robustness | None) -> Html | None:
    """Accuracy under each attack, and a few attacked texts beside what they were."""
    if robustness is None:
        return None
    shown = robustness_table(robustness)
    rows = (element("tr", row_head(row[0]), *(number(cell) for cell in row[1:])) for row in shown.rows)
    head = [shown.head[0].capitalize(), *(number_head(name.capitalize()) for name in shown.head[1:])]
    examples = (
        element(
            "tr",
            row_head(name, sub(f"{example.label} → {example.predicted}")),
            element("td", example.clean),
            element("td", example.attacked),
        )
        for name, example in shown.examples
    )
    texts = table(["Attack", "Text", "Attacked text"], examples, "Attacked texts") if shown.examples else None
    return section(shown.title, shown.lead, table(head, rows, "Accuracy under attack"), texts)


def samples_section(samples: Sequence[WrittenSample]) -> Html | None:
    """What the model wrote: the given beginning, then its own words."""
    lead = "Beginnings of test texts, and how the model goes on (in bold); sampled, not chosen."
    told = (element("p", sample.prompt, element("strong", sample.text), class_="note") for sample in samples)
    return section("What it writes", lead, *told) if samples else None


def effects_section(effects: Sequence[tuple[str, EffectReport]]) -> Html | None:
    """Each technique's proof; the first of each pair is the arm, empty on a run's page."""
    with_arms = any(arm for arm, _ in effects)
    failed = sum(not effect.passed for _, effect in effects)
    lead = (
        f"{failed} of {len(effects)} options did nothing that could be measured."
        if failed
        else f"{len(effects)} of {len(effects)} options were measured to do what they say."
    )
    rows = (
        element(
            "tr",
            row_head(arm) if with_arms else None,
            (element("td", effect.technique) if with_arms else row_head(effect.technique)),
            element("td", effect.claim, sub(effect.detail)),
            number(show_number(effect.value)),
            element(
                "td",
                element(
                    "span",
                    *(("proven",) if effect.passed else ("no effect",)),
                    class_=f"pill {'passed' if effect.passed else 'failed'}",
                ),
            ),
        )
        for arm, effect in effects
    )
    head = [*(["Arm"] if with_arms else []), "Technique", "Claim", number_head("Measured"), "Proof"]
    return section("Proof of effect", lead, table(head, rows, "Proof of effect") if effects else None)


def predicted_section(costs: Sequence[tuple[str, Cost]]) -> Html | None:
    """Predicted beside measured, one row per run or arm that was planned."""
    rows = []
    for name, cost in costs:
        plan = cost.predicted
        if plan is None:
            continue
        cells = (
            _planned(show_seconds(plan.seconds), show_seconds(cost.seconds), cost.seconds, plan.seconds),
            _planned(show_count(plan.tokens), show_count(cost.tokens), cost.tokens, plan.tokens),
            _planned(
                show_bytes(plan.peak_memory_bytes),
                show_bytes(cost.peak_memory_bytes),
                cost.peak_memory_bytes,
                plan.peak_memory_bytes,
            ),
            _planned(show_bytes(plan.disk_bytes), show_bytes(cost.disk_bytes), cost.disk_bytes, plan.disk_bytes),
        )
        rows.append(element("tr", row_head(name), *cells))
    head = ["", *(number_head(name) for name in ("Training time", "Tokens", "Peak memory", "Disk"))]
    lead = "What the plan foretold before the first step → what was measured, and the ratio of the two."
    return section("Predicted and measured", lead, table(head, rows, "Predicted and measured") if rows else None)


def _planned(predicted: str, measured: str, value: float | None, plan: float | None) -> Html:
    """One cell: predicted → measured, and below it their ratio, coloured when it is far from 1."""
    far = value is not None and plan and not 0.75 <= value / plan <= 1.33
    ratio = element("span", show_ratio(value, plan), class_="caution" if far else None) if value is not None and plan else None
    return number(predicted, " → ", element("b", measured), sub(ratio))


def data_section(data: DataReport | None) -> Html | None:
    """Where every input row went."""
    if data is None:
        return None
    checked = [
        (data.rows_kept, "", "kept"),
        (data.rows_dropped, "third", "dropped"),
        (data.rows_quarantined, "loss", "quarantined"),
    ]
    parts = [(data.train, "", "train"), (data.validation, "second", "validation"), (data.test, "third", "test")]
    flow = element(
        "div",
        _stack("Rows in", [(data.rows_in, "whole", "read")], data.rows_in),
        _stack("After checks", checked, data.rows_in),
        _stack("Divided into", parts, data.rows_in) if any(count for count, _, _ in parts) else None,
        class_="flow card",
    )
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(data.reasons.items(), key=lambda item: -item[1]))
    lead = rows_in_words(data)
    lead += f" ({reasons}), listed in `quarantine.jsonl`." if reasons else "."
    if data.leaked is not None:
        lead += (
            f" {data.leaked:,} test rows overlap with rows that the model was trained or tuned on: their scores flatter."
            if data.leaked
            else " No test row stands in the training data."
        )
    return section("Data", lead, flow, _prepared(data))


def _prepared(data: DataReport) -> Html | None:
    """What each step of `data.prepare` did."""
    if not data.prepared:
        return None
    shown = prepare_table(data.prepared)
    numbers = range(1, len(shown.head) - 1)
    rows = (
        element("tr", row_head(element("code", row[0])), *(number(row[i]) for i in numbers), element("td", row[-1]))
        for row in shown.rows
    )
    head = [
        shown.head[0].capitalize(),
        *(number_head(shown.head[i].capitalize()) for i in numbers),
        shown.head[-1].capitalize(),
    ]
    return join(element("p", prose(shown.lead), class_="muted small"), table(head, rows, shown.title))


def _stack(title: str, parts: Sequence[tuple[int | None, str, str]], whole: int) -> Html:
    """One line of the flow: a title, a bar with one block per part, the counts in words."""
    known = [(count, kind or None, name) for count, kind, name in parts if count]
    blocks = (element("i", style=f"width:{100 * count / max(whole, 1):.2f}%", class_=kind) for count, kind, _ in known)
    words = (element("span", element("i", class_=kind), f"{count:,} {name}") for count, kind, name in known)
    bar = element("span", *blocks, class_="stack", aria_hidden="true")
    return join(element("span", title), bar, element("span", *words, class_="counts"))


def events_section(events: Sequence[EventSummary]) -> Html | None:
    """What happened on the way: skipped steps, restarts, damaged files."""
    rows = (
        element("tr", row_head(element("code", one.code)), number(f"{one.count:,}"), element("td", one.text)) for one in events
    )
    head = ["Event", number_head("Times"), "The last one"]
    return section("What happened on the way", "", table(head, rows, "Events") if events else None)


def reproduce_section(report: CommonReport) -> Html | None:
    """The command, the recipe and the machine."""
    facts = {**report.environment, "started": report.started, "finished": report.finished, "hash": report.hash}
    listed = element(
        "dl",
        *(element("div", element("dt", name), element("dd", value)) for name, value in facts.items() if value),
        class_="facts",
    )
    recipe = (
        element("details", element("summary", "The resolved recipe"), element("pre", element("code", as_yaml(report.recipe))))
        if report.recipe
        else None
    )
    command = element("pre", element("code", report.command)) if report.command else None
    return section("Do it again", "", element("div", command, recipe, listed, class_="card"))


def glossary_section() -> Html | None:
    """One line per term."""
    terms = (element("div", element("dt", term), element("dd", meaning)) for term, meaning in GLOSSARY)
    return section("Words", "", element("dl", *terms, class_="glossary"))


def as_yaml(value: Mapping[str, Any]) -> str:
    """Plain JSON values as YAML."""
    writer, stream = YAML(typ="safe", pure=True), io.StringIO()
    writer.default_flow_style, writer.sort_base_mapping_type_on_output = False, False  # type: ignore[assignment]
    writer.dump(dict(value), stream)
    return stream.getvalue()


def word_section(shown: WordTable, title: str | None = None) -> Html | None:
    """A section with a table of words, under its own title or another."""
    words = {0, *(place for place, name in enumerate(shown.head) if name in shown.words)}
    titles = [name[:1].upper() + name[1:] for name in shown.head]  # not `capitalize`: FLOPs stay FLOPs
    head = [title if place in words else number_head(title) for place, title in enumerate(titles)]
    rows = (
        element(
            "tr",
            row_head(row[0]),
            *(element("td", cell) if place in words else number(cell) for place, cell in enumerate(row[1:], start=1)),
        )
        for row in shown.rows
    )
    return section(title or shown.title, shown.lead, table(head, rows, shown.title))
