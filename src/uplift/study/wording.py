"""Numbers and verdicts in words, the same in the terminal and on the page."""

from __future__ import annotations

import re

from uplift.core.report import DataReport, Difference, Interval, Report

PLAIN_METRICS = frozenset(
    {"nll", "bits_per_byte", "perplexity", "mcc", "brier", "loss", "validation_loss", "calibration_error"}
)
"""Metrics shown as they are; all others are shares and shown in per cent."""
DASH = "–"
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe\uffff\ud800-\udfff]")

GLOSSARY: tuple[tuple[str, str], ...] = (
    ("Score", "the main metric on test rows that no arm has trained on; every arm sees the same rows."),
    (
        "95 % interval",
        "where the score would mostly fall with other test rows and other seeds; overlapping intervals are no test.",
    ),
    ("Paired test", "compares two arms row by row, which shows smaller differences than two separate intervals do."),
    ("p after Holm", "how often chance alone gives such a difference, corrected for the number of tests; below 0.05 counts."),
    ("Proof of effect", "a number measured in the run that shows the option did what it says."),
    ("Placebo", "the same training on shuffled labels; it must score what blind guessing scores."),
    ("Under attack", "right only if right before and under the attack; rows that were wrong before count as wrong."),
    ("Quarantined", "input rows left out because they broke a rule; each is listed with its file and line."),
    ("To keep", "what must be stored to use the result: the adapter alone where there is one."),
    ("Predicted", "what the plan foretold before the first step."),
    ("Macro F1", "mean over classes of the harmonic mean of precision and recall; rare classes count as much as common ones."),
    ("Calibration error", "how far stated confidence lies from how often the model is right."),
)


def visible(text: str) -> str:
    """Text with the characters that steer terminals, hide or reorder text, or break XML replaced by a visible mark."""
    return _HIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)


def is_share(metric: str) -> bool:
    """Whether a metric is a share from 0 to 1, shown in per cent."""
    return metric.removeprefix("validation_").removeprefix("base_") not in PLAIN_METRICS


def show_score(metric: str, value: float | None, *, signed: bool = False, unit: bool = True) -> str:
    """A score for people: shares in per cent with one decimal (differences in points), the rest with three decimals."""
    if value is None:
        return DASH
    if not is_share(metric):
        return _minus(f"{value:+.3f}" if signed else f"{value:.3f}")
    if signed:
        return _minus(f"{100 * value:+.1f}") + (" points" if unit else "")
    return _minus(f"{100 * value:.1f}") + (" %" if unit else "")


def show_interval(metric: str, interval: Interval, *, signed: bool = False) -> str:
    """``82.0 to 86.1``; empty when there is none."""
    if interval.low is None or interval.high is None:
        return ""
    ends = (show_score(metric, end, signed=signed, unit=False) for end in (interval.low, interval.high))
    return " to ".join(ends)


def show_metric_name(metric: str) -> str:
    """``macro_f1`` -> ``macro F1``."""
    fixed = {"f1": "F1", "nll": "NLL", "mcc": "MCC", "auroc": "AUROC"}
    return " ".join(fixed.get(word, word) for word in metric.split("_"))


def show_seconds(seconds: float | None) -> str:
    """``0.6 s``, ``91 s``, ``12 min``, ``3 h 20 min``."""
    if seconds is None:
        return DASH
    if seconds < 10:
        return f"{seconds:.1f} s" if seconds else "0 s"
    if seconds < 300:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def show_bytes(count: int | None) -> str:
    """``4.0 MB`` in powers of 1000, as disks and downloads are sold."""
    if count is None:
        return DASH
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 10 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def show_seeds(count: int) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{count} seed{'s' * (count != 1)}"


def show_count(count: float | None) -> str:
    """``1,154``, ``921.6 k``, ``22.7 M``."""
    if count is None:
        return DASH
    if count < 10_000:
        return f"{count:,.0f}"
    for limit, unit in ((1e6, "k"), (1e9, "M"), (1e12, "B")):
        if count < limit * 0.9995:
            return f"{count / (limit / 1000):.1f} {unit}"
    return f"{count / 1e12:.1f} T"


def show_p(p: float | None) -> str:
    """A p-value: two significant digits, ``< 0.001`` below that."""
    if p is None:
        return DASH
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def show_number(value: float | None) -> str:
    """A measured number of unknown kind: whole ones with separators, others with four digits."""
    if value is None:
        return DASH
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"


def show_ratio(measured: float | None, predicted: float | None) -> str:
    """Measured over predicted: ``1.07 ×``."""
    return f"{measured / predicted:.2f} ×" if measured is not None and predicted else DASH


def rows_in_words(data: DataReport) -> str:
    """Where the input rows went, as a sum."""
    dropped = f" + {data.rows_dropped:,} dropped" if data.prepared else ""
    return f"{data.rows_in:,} rows in = {data.rows_kept:,} kept{dropped} + {data.rows_quarantined:,} quarantined"


def _minus(number: str) -> str:
    return number.replace("-", "\N{MINUS SIGN}")


def verdict(report: Report) -> str:
    """What one run came to, in a sentence; names are in backticks."""
    if report.status == "running":
        return "The run is not finished yet."
    if report.status != "finished":
        return f"The run {'stopped' if report.status == 'stopped' else 'failed'}: {report.reason or 'no reason was recorded'}"
    if report.evaluation is None:
        return "The run finished; nothing was evaluated."
    evaluation = report.evaluation
    name, score = show_metric_name(evaluation.metric), show_score(evaluation.metric, evaluation.value)
    if evaluation.difference is None:
        return (
            f"`{report.name}` reaches {name} {score} on {evaluation.items:,} held-out rows; no base score to hold it against."
        )
    gain = _gain(evaluation.metric, evaluation.difference, evaluation.higher_is_better)
    return f"`{report.name}` reaches {name} {score} on {evaluation.items:,} held-out rows, {gain}."


def _gain(metric: str, difference: Difference, higher_is_better: bool) -> str:
    """The difference from the base in words, honest when there is none to see."""
    value, low, high = difference.value, difference.low, difference.high
    if value is None or low is None or high is None or low <= 0 <= high:
        return "no difference from the base that this data can show"
    better = (value > 0) == higher_is_better
    amount = show_score(metric, abs(value), signed=True).lstrip("+")
    return f"{amount} {'better' if better else 'worse'} than the base"
