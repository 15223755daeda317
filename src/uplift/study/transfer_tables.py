"""The tables of a transfer study in words: the same for the terminal and the page."""

from __future__ import annotations

from uplift.core.report import Interval
from uplift.core.study_report import LabelsSaved, TransferArm, TransferReport
from uplift.study.word_table import WordTable
from uplift.study.wording import DASH, show_interval, show_metric_name, show_p, show_score, show_seeds


def tables_of(report: TransferReport) -> list[WordTable]:
    """Every table that has something in it, most important first."""
    tables = [curves_table(report), gains_table(report), saved_table(report), blocks_table(report), training_table(report)]
    return [table for table in tables if table.rows]


def curves_table(report: TransferReport) -> WordTable:
    """Score by arm and rows."""
    lead = f"{show_metric_name(report.metric)} by number of training rows, on {report.items:,} held-out rows"
    lead += f"; mean of {show_seeds(len(report.seeds))}, 95 % interval in brackets."
    rows = ((arm.name, *(_scored(report.metric, point.score) for point in arm.points)) for arm in report.arms)
    return WordTable("Score by training rows", lead, ("arm", *_counts(report)), tuple(rows))


def gains_table(report: TransferReport) -> WordTable:
    """The area under each curve, and what it gains over scratch."""
    lead = "Area: mean score over the logarithm of the rows. Share: of what all pretrained weights gain over new ones."
    head = ("arm", "area", "against scratch", "95 % interval", "share", "what is kept")
    rows = tuple(_gain_row(report.metric, arm) for arm in report.arms)
    return WordTable("What is transferred", lead, head, rows, words=("what is kept",))


def _gain_row(metric: str, arm: TransferArm) -> tuple[str, ...]:
    gain = arm.gain
    shown = show_score(metric, gain.value, signed=True, unit=False) if gain else DASH
    ends = show_interval(metric, gain, signed=True) if gain else ""
    share = DASH if arm.share is None else f"{100 * arm.share:.0f} %"
    return (arm.name, show_score(metric, arm.area.value) if arm.area else DASH, shown, ends, share, arm.summary)


def saved_table(report: TransferReport) -> WordTable:
    """Rows that scratch needs for the same score."""
    lead = "How many rows training from scratch needs for what the pretrained model scores. "
    lead += "`>`: it never got there; `≤`: it was there with its fewest rows."
    head = ("rows, pretrained", "rows, from scratch", "labels saved", "95 % interval")
    return WordTable("Labels saved", lead, head, tuple(_saved_row(one, report.rows) for one in report.labels_saved))


MARKS = {"at least": "> ", "at most": "≤ ", "": ""}


def show_ratio(ratio: float | None, bound: str = "", unit: str = " ×") -> str:
    """``16.0 ×``, ``> 64.0 ×``, ``≤ 0.25 ×``."""
    return DASH if ratio is None else f"{MARKS[bound]}{ratio:.{1 if ratio >= 1 else 2}f}{unit}"


def _saved_row(saved: LabelsSaved, rows: tuple[int, ...]) -> tuple[str, ...]:
    needed = DASH if saved.needed is None else f"{MARKS[saved.bound]}{saved.needed:,.0f}"
    ends = (_end(end, saved.rows, rows) for end in (saved.low, saved.high))
    return (f"{saved.rows:,}", needed, show_ratio(saved.ratio, saved.bound), " to ".join(ends))


def _end(ratio: float | None, count: int, rows: tuple[int, ...]) -> str:
    """An end of the interval; one that stands at the first or last measured number of rows is only a bound."""
    needed = (ratio or 0.0) * count
    beyond = "at least" if needed >= rows[-1] * (1 - 1e-9) else "at most" if needed <= rows[0] * (1 + 1e-9) else ""
    return show_ratio(ratio, beyond, unit="")


def blocks_table(report: TransferReport) -> WordTable:
    """What each block is worth."""
    rows = tuple(
        (
            f"block {one.block}",
            show_score(report.metric, one.score.value),
            show_score(report.metric, one.loss.value, signed=True, unit=False),
            show_interval(report.metric, one.loss, signed=True),
            show_p(one.p_holm),
        )
        for one in report.blocks
    )
    at = f"{report.blocks[0].rows:,}" if report.blocks else ""
    lead = f"One block at a time is drawn anew, with {at} training rows. Loss: how much worse than with all pretrained weights."
    return WordTable("Block by block", lead, ("drawn anew", "score", "loss", "95 % interval", "p (Holm)"), rows)


def training_table(report: TransferReport) -> WordTable:
    """Whether each arm was trained far enough to be judged."""
    lead = "Training loss at the end over that at the beginning: an arm that stays near 1 has not fitted its own rows."
    rows = []
    for arm in report.arms:
        ratios = [
            f"{point.last_loss / point.first_loss:.2f}" if point.last_loss is not None and point.first_loss else DASH
            for point in arm.points
        ]
        rows.append((arm.name, *ratios))
    return WordTable("Trained far enough?", lead, ("arm", *_counts(report)), tuple(rows))


def _counts(report: TransferReport) -> tuple[str, ...]:
    return tuple(f"{count:,}" for count in report.rows)


def _scored(metric: str, score: Interval | None) -> str:
    if score is None or score.value is None:
        return DASH
    ends = show_interval(metric, score)
    return show_score(metric, score.value, unit=False) + (f" ({ends})" if ends else "")
