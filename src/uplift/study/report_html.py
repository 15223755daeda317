"""A report as one self-contained HTML page: no request leaves it, no script is in it, and it prints."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
from collections.abc import Sequence

from uplift.core.report import Arm, CommonReport, ComparisonReport, Cost, Evaluation, PairedTest, Report
from uplift.study.charts import calibration_chart, score_against_cost, training_curves
from uplift.study.exports import exports_table
from uplift.study.markup import Html, element, join, prose
from uplift.study.report_sections import (
    class_table,
    common_domain,
    confusion_table,
    data_section,
    effects_section,
    events_section,
    glossary_section,
    interval_bar,
    number,
    number_head,
    predicted_section,
    reproduce_section,
    robustness_section,
    row_head,
    samples_section,
    section,
    sub,
    table,
    tile,
    word_section,
)
from uplift.study.wording import (
    show_bytes,
    show_count,
    show_interval,
    show_metric_name,
    show_p,
    show_score,
    show_seconds,
    show_seeds,
    verdict,
)

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
MOST_CURVES = 12
"""Arms whose curves and confusion matrices are drawn: the best ones."""


def render_html(report: Report | ComparisonReport) -> str:
    """The page of a run or a comparison as a complete HTML document."""
    return _page(report.name, _comparison(report) if isinstance(report, ComparisonReport) else _run(report))


def render_page(
    report: CommonReport,
    kind: str,
    headline: str,
    reasons: Sequence[str],
    tiles: Sequence[Html | None],
    sections: Sequence[Html | None],
) -> str:
    """The page of any other report: its own ``sections`` between the headline and what all reports share."""
    effects = effects_section([("", effect) for effect in report.effects])
    shared = (effects, data_section(report.data), events_section(report.events), reproduce_section(report))
    return _page(report.name, join(_hero(report, kind, headline, reasons, tiles), *sections, *shared, glossary_section()))


def _page(name: str, content: Html) -> str:
    told = "Made by Uplift. All numbers stand in report.json beside this page; intervals are 95 % unless they say otherwise."
    return whole_page(name, content, told)


def whole_page(name: str, content: Html, told: str, *, style: str = "", script: str = "") -> str:
    """A complete document around ``content``; ``told`` is its last line, ``style`` stands behind the reports' own.

    ``script``, if any, is the only one that the page's policy lets run: it is known by its hash.
    """
    shared = (importlib.resources.files("uplift.study") / "report.css").read_text(encoding="utf-8")
    policy = f"{POLICY}; script-src {_source_of(script)}" if script else POLICY
    head = join(
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{name}: Uplift report"),
        element("style", Html(shared + style)),
    )
    footer = element("footer", prose(told))
    body = element("body", element("main", content), footer, element("script", Html(script)) if script else None)
    return f"<!doctype html>\n{element('html', element('head', head), body, lang='en')}\n"


def _source_of(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _hero(report: CommonReport, kind: str, headline: str, reasons: Sequence[str], tiles: Sequence[Html | None]) -> Html:
    eyebrow = element(
        "p",
        f"Uplift {kind}",
        element("strong", report.name),
        element("span", report.finished[:16].replace("T", " ")) if report.finished else None,
        element("span", report.status, class_=f"pill {report.status}"),
        class_="eyebrow",
    )
    listed = element("ul", *(element("li", prose(reason)) for reason in reasons), class_="reasons") if reasons else None
    warnings = (element("p", prose(warning), class_="note") for warning in report.warnings)
    notes = element("ul", *(element("li", prose(note)) for note in report.notes), class_="notes") if report.notes else None
    tiled = element("dl", *tiles, class_="tiles")
    return element("header", eyebrow, element("h1", prose(headline)), listed, tiled, *warnings, notes, class_="hero")


# -- comparison --------------------------------------------------------------------------------------------------------
def _comparison(report: ComparisonReport) -> Html:
    verdict_text = report.recommendation.text
    reasons = [reason for reason in report.recommendation.reasons if reason != verdict_text]
    arms = [arm for arm in report.arms if arm.status == "ok"]
    return join(
        _hero(report, "comparison", verdict_text, reasons, _comparison_tiles(report)),
        _ranking(report),
        _cost_and_placebo(report),
        _curves_section(arms),
        _confusions(arms),
        _classes(report.arm(report.recommendation.arm)),
        _tests(report),
        effects_section([(arm.name, effect) for arm in report.arms for effect in arm.effects]),
        predicted_section([*((arm.name, arm.cost) for arm in arms if arm.cost), ("total", report.cost)]),
        data_section(report.data),
        events_section(report.events),
        reproduce_section(report),
        glossary_section(),
    )


def _comparison_tiles(report: ComparisonReport) -> list[Html | None]:
    arm = report.arm(report.recommendation.arm)
    if arm is None or arm.score is None:
        return []
    metric = report.metric
    test = _test_of(report.tests, arm.name, report.baseline)
    gain = None
    if test is not None and report.baseline != arm.name:
        small = "p (Holm) " + show_p(test.p_holm) if test.differs else "no difference shown"
        gain = tile(f"against {report.baseline}", show_score(metric, _toward(test, arm.name), signed=True, unit=False), small)
    return [
        tile(
            f"{show_metric_name(metric)} of {arm.name}", show_score(metric, arm.score.value), show_interval(metric, arm.score)
        ),
        gain,
        *_cost_tiles(arm.cost),
    ]


def _cost_tiles(cost: Cost | None) -> list[Html]:
    if cost is None:
        return []
    evaluation = f"+ {show_seconds(cost.evaluation_seconds)} evaluation" if cost.evaluation_seconds is not None else None
    trained = f"{show_count(cost.trainable_parameters)} trained parameters" if cost.trainable_parameters else "nothing trained"
    tokens = f"{show_count(cost.tokens)} tokens" if cost.tokens else None
    return [
        tile("training time", show_seconds(cost.seconds), evaluation),
        tile("peak memory", show_bytes(cost.peak_memory_bytes), tokens),
        *([tile("to keep", show_bytes(cost.model_bytes), trained)] if cost.model_bytes is not None else []),
    ]


def _test_of(tests: Sequence[PairedTest], first: str, second: str | None) -> PairedTest | None:
    return next((test for test in tests if set(test.arms) == {first, second}), None)


def _toward(test: PairedTest, arm: str) -> float | None:
    """The difference seen from ``arm``: its score minus the other's."""
    return test.difference if test.arms[0] == arm or test.difference is None else -test.difference


def _ranking(report: ComparisonReport) -> Html | None:
    scores = [arm.score for arm in report.arms if arm.score is not None]
    ends = [end for score in scores for end in (score.low, score.value, score.high)]
    domain = common_domain([*ends, *(seed.value for arm in report.arms for seed in arm.seeds)])
    scale = element("span", *(element("span", show_score(report.metric, end, unit=False)) for end in domain), class_="ends")
    head = [
        number_head("#"),
        "Arm",
        number_head(show_metric_name(report.metric)),
        element("th", "95 % interval", scale, scope="col", class_="wide"),
        number_head(f"against {report.baseline}") if report.baseline else None,
        number_head("Training + evaluation"),
        number_head("Peak memory"),
        number_head("Trained parameters"),
        number_head("To keep"),
    ]
    seeds = (
        f"over {show_seeds(len(report.seeds))} and {report.items:,} held-out rows"
        if report.seeds
        else f"over {report.items:,} held-out rows"
    )
    lead = f"Every arm saw the same rows. Intervals are {seeds}; dots are single seeds"
    lead += f", the dashed line is `{report.baseline}`." if report.baseline else "."
    budget = report.budget.seconds
    lead += f" Training budget: {show_seconds(budget)} for each arm and seed." if budget else ""
    return section(
        "The arms, ranked",
        lead,
        table([cell for cell in head if cell], (_arm_row(report, arm, domain) for arm in report.arms), "Ranked arms"),
    )


def _arm_row(report: ComparisonReport, arm: Arm, domain: tuple[float, float]) -> Html:
    name = element("th", arm.name, sub(" · ".join(filter(None, (arm.kind, arm.summary)))), scope="row", class_="arm")
    if arm.status == "failed" or arm.score is None:
        columns = 7 if report.baseline else 6
        return element(
            "tr",
            number("–"),
            name,
            element("td", element("span", "failed", class_="pill failed"), " ", arm.reason, colspan=columns),
            class_="off",
        )
    chosen = arm.name == report.recommendation.arm
    baseline = report.arm(report.baseline)
    spoken = f"{show_score(report.metric, arm.score.value)}, 95 % interval {show_interval(report.metric, arm.score)}"
    bar = interval_bar(
        arm.score.value,
        arm.score.low,
        arm.score.high,
        domain,
        reference=baseline.score.value if baseline and baseline.score else None,
        seeds=[seed.value for seed in arm.seeds],
        spoken=spoken,
    )
    return element(
        "tr",
        number(arm.rank),
        name,
        number(
            show_score(report.metric, arm.score.value),
            sub(show_interval(report.metric, arm.score)),
            class_="best" if chosen else "",
        ),
        element("td", bar, class_="wide"),
        _against(report, arm) if report.baseline else None,
        *_arm_cost(arm.cost),
        class_="chosen" if chosen else None,
    )


def _against(report: ComparisonReport, arm: Arm) -> Html:
    if arm.name == report.baseline:
        return number(element("span", "baseline", class_="muted"))
    test = _test_of(report.tests, arm.name, report.baseline)
    if test is None:
        return number("–")
    gap = _toward(test, arm.name)
    shown = show_score(report.metric, gap, signed=True, unit=False)
    if not test.differs or gap is None:
        return number(element("span", shown, class_="muted"), sub("not shown"))
    better = (gap > 0) == report.higher_is_better
    return number(element("span", shown, class_="good" if better else "bad"))


def _arm_cost(cost: Cost | None) -> list[Html]:
    if cost is None:
        return [number("–")] * 4
    return [
        number(show_seconds(cost.seconds), " + ", show_seconds(cost.evaluation_seconds)),
        number(show_bytes(cost.peak_memory_bytes)),
        number(show_count(cost.trainable_parameters) if cost.trainable_parameters else "none"),
        number(show_bytes(cost.model_bytes) if cost.model_bytes else "nothing"),
    ]


def _cost_and_placebo(report: ComparisonReport) -> Html | None:
    chart = score_against_cost(report.arms, report.metric, report.recommendation.arm)
    card = element("figure", chart, class_="card") if chart else None
    note = None
    if report.placebo is not None:
        placebo = report.placebo
        word = element(
            "span",
            "at chance" if placebo.at_chance else "not at chance",
            class_=f"pill {'passed' if placebo.at_chance else 'failed'}",
        )
        note = element(
            "dl",
            tile(
                "placebo: shuffled labels",
                show_score(report.metric, placebo.score.value),
                join(show_interval(report.metric, placebo.score), " ", word),
            ),
            tile("blind guessing scores", show_score(report.metric, placebo.chance), prose(placebo.text)),
            class_="tiles",
        )
    body = element("div", card, note, class_="pair") if card and note else card or note
    up = "Up" if report.higher_is_better else "Down"
    return section("Score against cost", f"{up} is better, left is cheaper. Bars are 95 % intervals.", body)


def _curves_section(arms: Sequence[Arm]) -> Html | None:
    figures = []
    for arm in arms[:MOST_CURVES]:
        chart = training_curves(arm.name, arm.curves)
        if chart is not None:
            figures.append(element("figure", element("figcaption", arm.name), chart, class_="card"))
    key = element(
        "p",
        element("span", element("i"), "training"),
        element("span", element("i", class_="accent"), "validation"),
        class_="key",
    )
    lead = "Loss by optimizer step; each arm has its own scale, because losses of different heads do not compare."
    return section("Training", lead, (key, element("div", *figures, class_="grid")) if figures else None)


def _confusions(arms: Sequence[Arm]) -> Html | None:
    figures = [
        element(
            "figure",
            element("figcaption", arm.name),
            confusion_table(arm.confusion, f"Confusion matrix of {arm.name}"),
            class_="card",
        )
        for arm in arms[:MOST_CURVES]
        if arm.confusion is not None
    ]
    lead = "Rows are the true class, columns what the arm said. Teal is right, red is wrong, deeper is more of the row."
    return section("Which classes are mistaken for which", lead, element("div", *figures, class_="grid") if figures else None)


def _classes(arm: Arm | None) -> Html | None:
    if arm is None or not arm.classes:
        return None
    return section(f"Class by class: {arm.name}", "", class_table(arm.classes, f"Scores of {arm.name} by class"))


def _tests(report: ComparisonReport) -> Html | None:
    if not report.tests:
        return None
    domain = common_domain([0.0, *(end for test in report.tests for end in (test.low, test.high))])
    scale = element(
        "span", *(element("span", show_score(report.metric, end, signed=True, unit=False)) for end in domain), class_="ends"
    )
    rows = [_test_row(report, test, domain) for test in report.tests]
    head = [
        "First",
        "Second",
        number_head("First minus second"),
        element("th", "95 % interval", scale, scope="col", class_="wide"),
        number_head("p (Holm)"),
        "Reading",
    ]
    methods = ", ".join(sorted({test.method for test in report.tests if test.method}))
    lead = f"Row by row on the same {report.items:,} rows" + (f" ({methods})" if methods else "")
    lead += f"; p-values corrected for {len(report.tests)} tests. The dashed line is no difference."
    return section("Which differences are real", lead, table(head, rows, "Paired tests"))


def _test_row(report: ComparisonReport, test: PairedTest, domain: tuple[float, float]) -> Html:
    shown = show_score(report.metric, test.difference, signed=True, unit=False)
    bar = interval_bar(test.difference, test.low, test.high, domain, reference=0.0, spoken=f"difference {shown}")
    reading = element("td", "no difference shown", class_="muted")
    if test.differs and test.difference is not None:
        winner = test.arms[0] if (test.difference > 0) == report.higher_is_better else test.arms[1]
        reading = element("td", winner, " is better")
    return element(
        "tr",
        row_head(test.arms[0]),
        element("td", test.arms[1]),
        number(shown),
        element("td", bar, class_="wide"),
        number(show_p(test.p_holm)),
        reading,
    )


# -- run ---------------------------------------------------------------------------------------------------------------
def _run(report: Report) -> Html:
    evaluation = report.evaluation
    chart = training_curves(report.name, report.curves, width=860, height=240)
    key = element(
        "p",
        element("span", element("i"), "training"),
        element("span", element("i", class_="accent"), "validation"),
        class_="key",
    )
    return join(
        _hero(report, "run", verdict(report), (), _run_tiles(report)),
        _metrics(evaluation) if evaluation else None,
        section("Training", "Loss by optimizer step.", (key, element("figure", chart, class_="card")) if chart else None),
        _quality(evaluation) if evaluation else None,
        section("Class by class", "", class_table(evaluation.classes, "Scores by class")) if evaluation else None,
        robustness_section(evaluation.robustness) if evaluation else None,
        word_section(exports_table([("", each) for each in report.exports])) if report.exports else None,
        samples_section(report.samples),
        effects_section([("", effect) for effect in report.effects]),
        predicted_section([(report.name, report.cost)]),
        data_section(report.data),
        events_section(report.events),
        reproduce_section(report),
        glossary_section(),
    )


def _run_tiles(report: Report) -> list[Html | None]:
    tiles: list[Html | None] = []
    if report.evaluation is not None:
        evaluation, metric = report.evaluation, report.evaluation.metric
        tiles.append(
            tile(show_metric_name(metric), show_score(metric, evaluation.value), show_interval(metric, evaluation.score))
        )
        if evaluation.difference is not None:
            gain = show_score(metric, evaluation.difference.value, signed=True, unit=False)
            tiles.append(tile("against the base", gain, show_interval(metric, evaluation.difference, signed=True)))
    return [*tiles, *_cost_tiles(report.cost)]


def _metrics(evaluation: Evaluation) -> Html | None:
    rows = []
    for name, measured in evaluation.metrics.items():
        base = evaluation.base_metrics.get(name)
        rows.append(
            element(
                "tr",
                row_head(show_metric_name(name)),
                number(show_score(name, base.value), sub(show_interval(name, base))) if base else number("–"),
                number(show_score(name, measured.value), sub(show_interval(name, measured)), class_="best"),
                number(_change(name, base.value if base else None, measured.value)),
            )
        )
    head = ["Metric", number_head("Base"), number_head("This run"), number_head("Change")]
    lead = f"On {evaluation.items:,} held-out rows, the model before and after; 95 % intervals below each number."
    return section("Before and after", lead, table(head, rows, "Metrics before and after") if rows else None)


def _change(metric: str, before: float | None, after: float | None) -> str:
    return "–" if before is None or after is None else show_score(metric, after - before, signed=True, unit=False)


def _quality(evaluation: Evaluation) -> Html | None:
    figures = []
    if evaluation.confusion is not None:
        matrix = confusion_table(evaluation.confusion, "Confusion matrix")
        figures.append(
            element("figure", element("figcaption", "Confusion: true class down, answer across"), matrix, class_="card")
        )
    chart = calibration_chart(evaluation.calibration)
    if chart is not None:
        figures.append(
            element("figure", element("figcaption", "Calibration: is stated confidence honest?"), chart, class_="card")
        )
    return section("Right and wrong", "", element("div", *figures, class_="grid roomy") if figures else None)
