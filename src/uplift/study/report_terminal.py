"""A report in the terminal: the verdict first, then compact tables of the same content as the page."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from uplift.core.report import (
    Arm,
    CommonReport,
    ComparisonReport,
    Cost,
    DataReport,
    EffectReport,
    Evaluation,
    Interval,
    PairedTest,
    Report,
    Robustness,
)
from uplift.study.exports import exports_table
from uplift.study.prepare_table import prepare_table
from uplift.study.robustness_table import robustness_table
from uplift.study.word_table import WordTable
from uplift.study.wording import (
    DASH,
    rows_in_words,
    show_bytes,
    show_count,
    show_interval,
    show_metric_name,
    show_number,
    show_p,
    show_ratio,
    show_score,
    show_seconds,
    verdict,
    visible,
)

BAR = 16
"""Characters of an interval bar."""
WIDE = 120
"""Columns from which a terminal has room for bars and every cost."""
GAP = 3
"""Characters between two columns."""
WRAPPED = 10
"""Characters that a column of words can be wrapped to."""
LEAST_COLUMNS = 3
"""Columns of a table that a narrow terminal shows in any case."""
STATUS_STYLE = {"finished": "green", "running": "yellow", "stopped": "yellow", "failed": "red"}


def render_terminal(report: Report | ComparisonReport, console: Console) -> None:
    """Print a report; text from data is never read as console markup."""
    if isinstance(report, ComparisonReport):
        _comparison(report, console)
    else:
        _run(report, console)


def render_tables(
    report: CommonReport, headline: str, reasons: Sequence[str], tables: Sequence[WordTable], console: Console
) -> None:
    """Print any other report: its headline, its tables, and what all reports end with."""
    _head(report, headline, reasons, console)
    for shown in tables:
        console.print(_word_table(shown, console.width))
    _tail(report, console)


def _word_table(shown: WordTable, width: int) -> Table:
    """The table, without its last columns of numbers where ``width`` characters do not hold them: the page shows all."""
    kept = list(range(len(shown.head)))
    while (wider := sum(_width(shown, column) for column in kept) - GAP > width) and len(kept) > LEAST_COLUMNS:
        kept.remove(next((column for column in reversed(kept[1:]) if shown.head[column] not in shown.words), kept[-1]))
    head = [shown.head[column] for column in kept]
    left_out = [name for name in shown.head if name not in head]
    right = [name for name in head[1:] if name not in shown.words]
    table = _table(shown.title, *head, right=right, whole="" if wider else head[0])
    for row in shown.rows:
        table.add_row(*(_text(row[column]) for column in kept))
    if left_out:
        table.caption, table.caption_justify = _text(f"also on the page: {', '.join(left_out)}", "dim"), "left"
    return table


def _width(shown: WordTable, column: int) -> int:
    """Characters that a column needs, gap included; further columns of words wrap to ``WRAPPED``."""
    needed = max(len(row[column]) for row in (shown.head, *shown.rows))
    return GAP + (min(needed, WRAPPED) if shown.head[column] in shown.words else needed)


def _comparison(report: ComparisonReport, console: Console) -> None:
    text = report.recommendation.text
    _head(report, text, [reason for reason in report.recommendation.reasons if reason != text], console)
    console.print(_ranking(report, console.width >= WIDE))
    for arm in report.arms:
        if arm.status == "failed":
            console.print(Text.assemble(("failed ", "red"), visible(f"{arm.name}: {arm.reason}")))
    if report.placebo is not None:
        placebo = report.placebo
        score, chance = show_score(report.metric, placebo.score.value), show_score(report.metric, placebo.chance)
        mark = Text("at chance", "green") if placebo.at_chance else Text("not at chance", "red")
        console.print(Text.assemble("placebo (shuffled labels) ", score, ", blind guessing ", chance, ": ", mark))
    if report.tests:
        console.print(_tests(report, console.width >= WIDE))
    _effects([(arm.name, effect) for arm in report.arms for effect in arm.effects], console)
    _predicted([*((arm.name, arm.cost) for arm in report.arms if arm.cost), ("total", report.cost)], console)
    _tail(report, console)


def _run(report: Report, console: Console) -> None:
    _head(report, verdict(report), (), console)
    if report.evaluation is not None:
        console.print(_metrics(report.evaluation))
        if report.evaluation.classes:
            console.print(_classes(report.evaluation))
        if report.evaluation.robustness is not None:
            render_robustness(report.evaluation.robustness, console)
    if report.exports:
        console.print(_word_table(exports_table([("", each) for each in report.exports]), console.width))
    for sample in report.samples:
        console.print(Text.assemble("> ", _text(sample.prompt, "dim"), _text(sample.text)))
    _effects([("", effect) for effect in report.effects], console)
    _predicted([(report.name, report.cost)], console)
    cost = report.cost
    spent = f"{show_seconds(cost.seconds)} of training, {show_count(cost.tokens)} tokens"
    console.print(Text(f"cost: {spent}, {show_bytes(cost.peak_memory_bytes)} of memory at most"))
    _tail(report, console)


# -- parts -------------------------------------------------------------------------------------------------------------
def _table(title: str, *columns: str, right: Sequence[str] = (), whole: str = "") -> Table:
    """A table without frame. Numbers (``right``) and the column ``whole`` are never cut; the other words wrap."""
    table = Table(title=_text(title, "bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(
            _text(column),
            justify="right" if column in right else "left",
            no_wrap=column in right or column == whole,
            overflow="ellipsis" if column in right else "fold",
        )
    return table


def _text(value: str, style: str = "") -> Text:
    """Plain text: neither console markup nor control characters in it mean anything."""
    return Text(visible(value), style)


def _prose(text: str, style: str = "") -> Text:
    """A sentence with what stands in backticks in colour."""
    parts = visible(text).split("`")
    if len(parts) % 2 == 0:
        return _text(text, style)
    return Text.assemble(*((part, f"{style} cyan" if index % 2 else style) for index, part in enumerate(parts)))


def _head(report: CommonReport, headline: str, reasons: Sequence[str], console: Console) -> None:
    console.print(
        Text.assemble((visible(report.name), "bold"), f" {report.hash} ", (report.status, STATUS_STYLE[report.status]))
    )
    console.print(_prose(headline, "bold"))
    for reason in reasons:
        console.print(Text.assemble("  • ", _prose(reason)))
    for warning in report.warnings:
        console.print(Text.assemble(("  ! ", "yellow"), _prose(warning, "yellow")))
    for note in report.notes:
        console.print(Text.assemble("  - ", _prose(note, "dim")))
    console.print()


def _ranking(report: ComparisonReport, wide: bool) -> Table:
    columns = ["#", "arm", show_metric_name(report.metric), "95 % interval"]
    columns += [f"vs {report.baseline}" if report.baseline else "vs baseline", "time"]
    columns += ["memory", "trained", "to keep"] if wide else ["to keep"]
    title = f"Arms, ranked ({report.items:,} held-out rows)"
    table = _table(title, *columns, right=[column for column in columns if column not in ("arm", "95 % interval")], whole="arm")
    ends = [
        end for arm in report.arms if arm.score for end in (arm.score.low, arm.score.high, arm.score.value) if end is not None
    ]
    domain = (min(ends, default=0.0), max(ends, default=1.0))
    for arm in report.arms:
        if arm.score is not None and arm.status == "ok":
            style = "bold" if arm.name == report.recommendation.arm else ""
            table.add_row(*_score_cells(report, arm, domain if wide else None), *_cost_cells(arm.cost, wide), style=style)
    return table


def _score_cells(report: ComparisonReport, arm: Arm, domain: tuple[float, float] | None) -> list[Text]:
    score = arm.score or Interval(value=None)
    bar = f"{_bar(score, domain)} " if domain else ""
    return [
        Text(show_number(arm.rank)),
        _text(arm.name, "cyan" if arm.name == report.recommendation.arm else ""),
        Text(show_score(report.metric, score.value)),
        Text(bar + show_interval(report.metric, score)),
        _against(report, arm),
    ]


def _cost_cells(cost: Cost | None, wide: bool) -> list[Text]:
    if cost is None:
        return []
    time = show_seconds((cost.seconds or 0) + (cost.evaluation_seconds or 0))
    trained = show_count(cost.trainable_parameters) if cost.trainable_parameters else "none"
    keep = show_bytes(cost.model_bytes) if cost.model_bytes else "nothing"
    return [Text(cell) for cell in ([time, show_bytes(cost.peak_memory_bytes), trained, keep] if wide else [time, keep])]


def _bar(score: Interval, domain: tuple[float, float]) -> str:
    """The interval as a line with a dot at the score."""
    if score.value is None:
        return " " * BAR

    def cell(x: float) -> int:
        return min(BAR - 1, max(0, round((x - domain[0]) / ((domain[1] - domain[0]) or 1) * (BAR - 1))))

    value = score.value
    low, high = (cell(value if end is None else end) for end in (score.low, score.high))
    cells = ["━" if low <= index <= high else "·" for index in range(BAR)]
    cells[cell(value)] = "●"
    return "".join(cells)


def _against(report: ComparisonReport, arm: Arm) -> Text:
    if arm.name == report.baseline:
        return Text("baseline", "dim")
    test = next((test for test in report.tests if set(test.arms) == {arm.name, report.baseline}), None)
    if test is None or test.difference is None:
        return Text(DASH)
    gap = test.difference if test.arms[0] == arm.name else -test.difference
    better = (gap > 0) == report.higher_is_better
    style = ("green" if better else "red") if test.differs else "dim"
    return Text(show_score(report.metric, gap, signed=True, unit=False) + ("" if test.differs else " ?"), style)


def _tests(report: ComparisonReport, wide: bool) -> Table:
    numbers = ("difference", "p (Holm)")
    table = _table(
        "Paired tests",
        "first − second",
        "difference",
        "95 % interval",
        "p (Holm)",
        *(["reading"] if wide else []),
        right=numbers,
    )
    for test in report.tests:
        table.add_row(*(_text(cell) for cell in _test_cells(report, test, wide)), style="" if test.differs else "dim")
    return table


def _test_cells(report: ComparisonReport, test: PairedTest, wide: bool) -> list[str]:
    reading = "no difference shown"
    if test.differs and test.difference is not None:
        reading = f"{test.arms[0] if (test.difference > 0) == report.higher_is_better else test.arms[1]} is better"
    ends = (show_score(report.metric, end, signed=True, unit=False) for end in (test.low, test.high))
    gap = show_score(report.metric, test.difference, signed=True, unit=False)
    return [" − ".join(test.arms), gap, " to ".join(ends), show_p(test.p_holm), *([reading] if wide else [])]


def _metrics(evaluation: Evaluation) -> Table:
    table = _table(
        f"Before and after ({evaluation.items:,} held-out rows)",
        "metric",
        "base",
        "this run",
        "95 % interval",
        right=("base", "this run"),
    )
    for name, measured in evaluation.metrics.items():
        base = evaluation.base_metrics.get(name)
        cells = (show_metric_name(name), show_score(name, base.value if base else None), show_score(name, measured.value))
        table.add_row(*(_text(cell) for cell in (*cells, show_interval(name, measured))))
    return table


def _classes(evaluation: Evaluation) -> Table:
    columns = ("precision", "recall", "F1", "rows")
    table = _table("Class by class", "class", *columns, right=columns)
    for one in evaluation.classes:
        scores = (show_score("f1", value) for value in (one.precision, one.recall, one.f1))
        table.add_row(*(_text(cell) for cell in (one.label, *scores, f"{one.support:,}")))
    return table


def render_robustness(robustness: Robustness, console: Console) -> None:
    """Print what is left under attack, and a few attacked texts."""
    shown = robustness_table(robustness)
    wide = [i for i, name in enumerate(shown.head) if console.width >= WIDE or name not in ("queries", "words changed")]
    head = [shown.head[i] for i in wide]
    table = _table(f"{shown.title} ({robustness.rows:,} held-out rows)", *head, right=head[1:], whole=head[0])
    for row in shown.rows:
        table.add_row(*(_text(row[i]) for i in wide))
    console.print(table)
    for name, example in shown.examples:
        console.print(Text.assemble((f"{name}: ", "bold"), _text(f"{example.label} → {example.predicted}")))
        console.print(Text.assemble(("  - ", "dim"), _text(example.clean)))
        console.print(Text.assemble(("  + ", "dim"), _text(example.attacked)))


def _effects(effects: Sequence[tuple[str, EffectReport]], console: Console) -> None:
    if not effects:
        return
    named = any(arm for arm, _ in effects)
    table = _table(
        "Proof of effect", *(["arm"] if named else []), "technique", "claim", "measured", "proof", right=("measured",)
    )
    for arm, effect in effects:
        cells = [*([arm] if named else []), effect.technique, effect.claim, show_number(effect.value)]
        proof = Text("proven", "green") if effect.passed else Text("no effect", "red")
        table.add_row(*(_text(cell) for cell in cells), proof)
    console.print(table)


def _predicted(costs: Sequence[tuple[str, Cost]], console: Console) -> None:
    columns = ("time", "tokens", "memory", "disk")[: None if console.width >= WIDE else 3]
    table = _table("Predicted → measured, and their ratio", "", *columns, right=columns)
    for name, cost in costs:
        plan = cost.predicted
        if plan is None:
            continue
        cells = [
            _pair(show_seconds(plan.seconds), show_seconds(cost.seconds), show_ratio(cost.seconds, plan.seconds)),
            _pair(show_count(plan.tokens), show_count(cost.tokens), show_ratio(cost.tokens, plan.tokens)),
            _pair(
                show_bytes(plan.peak_memory_bytes),
                show_bytes(cost.peak_memory_bytes),
                show_ratio(cost.peak_memory_bytes, plan.peak_memory_bytes),
            ),
            _pair(show_bytes(plan.disk_bytes), show_bytes(cost.disk_bytes), show_ratio(cost.disk_bytes, plan.disk_bytes)),
        ]
        table.add_row(_text(name), *(_text(cell) for cell in cells[: len(columns)]))
    if table.row_count:
        console.print(table)


def _pair(predicted: str, measured: str, ratio: str) -> str:
    return DASH if predicted == measured == DASH else f"{predicted} → {measured}" + (f"\n{ratio}" if ratio != DASH else "")


def _tail(report: CommonReport, console: Console) -> None:
    if report.data is not None:
        if report.data.prepared:
            console.print(_word_table(prepare_table(report.data.prepared), console.width))
        console.print(_text(f"data: {_rows(report.data)}"))
    for event in report.events:
        console.print(_text(f"event: {event.code} × {event.count}: {event.text}"))
    if report.command:
        console.print(_text(f"again: {report.command}"))


def _rows(data: DataReport) -> str:
    text = rows_in_words(data)
    parts = [
        f"{count:,} {name}"
        for count, name in ((data.train, "train"), (data.validation, "validation"), (data.test, "test"))
        if count
    ]
    return f"{text}; {', '.join(parts)}" if parts else text
