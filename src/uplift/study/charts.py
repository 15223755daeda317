"""The charts of the reports as inline SVG, drawn by Vega-Lite without a browser.

Colours are placeholders from ``INKS``: the page's stylesheet gives each its value for light and dark schemes.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import vl_convert

from uplift.core.report import Arm, CalibrationBin, Curve, Number
from uplift.study.markup import Html, element, text
from uplift.study.wording import is_share, show_metric_name, show_seconds

INKS: Mapping[str, str] = {
    "ink": "#1c2127",
    "muted": "#5b6470",
    "line": "#dcdfe3",
    "accent": "#0b6e75",
    "soft": "#8a939e",
    "warm": "#b4541f",
}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
LABEL_SIZE = 12
_numbers = itertools.count()


@dataclass(frozen=True)
class _Frame:
    """A plotting area in pixels and its data ranges; x may be logarithmic."""

    width: int
    height: int
    x: tuple[float, float]
    y: tuple[float, float]
    log: bool = False

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Pixel of a data point, from the top left."""
        low, high, at = (*(math.log(end) for end in self.x), math.log(x)) if self.log else (*self.x, x)
        across = (at - low) / (high - low)
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return across * self.width, (1 - up) * self.height


def score_against_cost(arms: Sequence[Arm], metric: str, recommended: str | None) -> Html | None:
    """Score with its interval against training + evaluation time, one point per arm; None when fewer than two arms have both."""
    rows = []
    for arm in arms:
        if arm.score is None or arm.score.value is None or arm.cost is None:
            continue
        seconds = (arm.cost.seconds or 0) + (arm.cost.evaluation_seconds or 0)
        low, high = (arm.score.value if end is None else end for end in (arm.score.low, arm.score.high))
        rows.append({"name": arm.name, "seconds": max(seconds, 0.05), "score": arm.score.value, "low": low, "high": high})
    if len(rows) < 2:
        return None
    frame = _cost_frame(rows)
    for row in rows:
        row["chosen"] = row["name"] == recommended
    label_rows = _spread_labels(rows, frame)
    x, y = _cost_axes(frame, metric)
    colour = alt.condition("datum.chosen", alt.value(INKS["accent"]), alt.value(INKS["muted"]))
    base = alt.Chart(_data(rows))
    bars = base.mark_rule(strokeWidth=2, opacity=0.55).encode(x=x, y=y, y2="high:Q", color=colour)
    points = base.mark_point(filled=True, size=95, opacity=1).encode(
        x=x, y=alt.Y("score:Q", axis=y.axis, scale=y.scale), color=colour
    )
    labels = [
        alt.Chart(_data([row]))
        .mark_text(
            dx=row["dx"], dy=row["dy"], align=row["align"], fontSize=LABEL_SIZE, fontWeight=600 if row["chosen"] else 400
        )
        .encode(
            x=x,
            y=alt.Y("score:Q", axis=y.axis, scale=y.scale),
            text="name:N",
            color=alt.value(INKS["accent" if row["chosen"] else "ink"]),
        )
        for row in label_rows
    ]
    chart = alt.layer(bars, points, *labels).properties(width=frame.width, height=frame.height)
    spoken = "; ".join(f"{row['name']} {_shown(metric, row['score'])} in {show_seconds(row['seconds'])}" for row in rows)
    return _svg(chart, f"{show_metric_name(metric)} against time", f"Each arm's {show_metric_name(metric)} and time: {spoken}.")


def training_curves(arm_name: str, curves: Sequence[Curve], width: int = 300, height: int = 150) -> Html | None:
    """Training and validation loss by step; None when there is neither."""
    by_name = {curve.name: curve for curve in curves}
    layers = []
    for name, mark in (("loss", _training_line), ("validation_loss", _validation_line)):
        if name in by_name and any(value is not None for value in by_name[name].values):
            layers.append(mark(by_name[name]))
    if not layers:
        return None
    chart = alt.layer(*layers).properties(width=width, height=height)
    ends = "; ".join(
        f"{show_metric_name(name)} goes from {_first(curve.values):.3f} to {_first(curve.values[::-1]):.3f}"
        for name, curve in by_name.items()
        if name in ("loss", "validation_loss") and any(value is not None for value in curve.values)
    )
    return _svg(chart, f"Loss of {arm_name}", f"By optimizer step: {ends}.")


def calibration_chart(bins: Sequence[CalibrationBin]) -> Html | None:
    """How often the model is right against how confident it says it is; None without bins."""
    rows = [
        {"confidence": one.confidence, "accuracy": one.accuracy, "count": one.count}
        for one in bins
        if one.count and one.confidence is not None and one.accuracy is not None
    ]
    if not rows:
        return None
    start = min(0.5, *(min(row["confidence"], row["accuracy"]) for row in rows))
    scale = alt.Scale(domain=[math.floor(start * 10) / 10, 1], nice=False)
    x = alt.X("confidence:Q", scale=scale, axis=alt.Axis(title="stated confidence", format=".0%", tickCount=5))
    y = alt.Y("accuracy:Q", scale=scale, axis=alt.Axis(title="how often right", format=".0%", tickCount=5))
    ends = [{"confidence": end, "accuracy": end} for end in (start, 1)]
    diagonal = alt.Chart(_data(ends)).mark_line(strokeDash=[4, 4], strokeWidth=1.5, color=INKS["soft"]).encode(x=x, y=y)
    line = alt.Chart(_data(rows)).mark_line(strokeWidth=2, color=INKS["accent"]).encode(x=x, y=y)
    size = alt.Size("count:Q", scale=alt.Scale(range=[30, 220]), legend=None)
    points = alt.Chart(_data(rows)).mark_point(filled=True, opacity=1, color=INKS["accent"]).encode(x=x, y=y, size=size)
    chart = alt.layer(diagonal, line, points).properties(width=300, height=240)
    spoken = "; ".join(f"{row['confidence']:.0%} stated, {row['accuracy']:.0%} right, {row['count']} rows" for row in rows)
    return _svg(chart, "Calibration", f"On the dashed line confidence is honest. {spoken}.")


# -- parts -------------------------------------------------------------------------------------------------------------
def _data(rows: Sequence[Mapping[str, Any]]) -> alt.Data:
    return alt.Data(values=[dict(row) for row in rows])


def _cost_frame(rows: Sequence[Mapping[str, Any]]) -> _Frame:
    shortest, longest = min(row["seconds"] for row in rows), max(row["seconds"] for row in rows)
    log = longest > 20 * shortest
    x = (shortest / 1.8, longest * 1.8) if log else (0.0, longest * 1.12)
    low, high = min(row["low"] for row in rows), max(row["high"] for row in rows)
    margin = (high - low) * 0.08 or 0.01
    return _Frame(620, 330, x, (low - margin, high + margin), log)


def _cost_axes(frame: _Frame, metric: str) -> tuple[alt.X, alt.Y]:
    ticks = [
        tick
        for tick in (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)
        if frame.x[0] <= tick <= frame.x[1]
    ]
    steps = "datum.value < 60 ? datum.value + ' s' : datum.value < 3600 ? round(datum.value / 6) / 10 + ' min' : round(datum.value / 360) / 10 + ' h'"
    across = alt.Scale(type="log" if frame.log else "linear", domain=list(frame.x), nice=False)
    title = "training + evaluation time" + (" (logarithmic)" if frame.log else "")
    axis = alt.Axis(title=title, labelExpr=steps, grid=False, **({"values": ticks} if frame.log else {"tickCount": 6}))
    up = alt.Scale(domain=list(frame.y), nice=False, zero=False)
    label = alt.Axis(title=show_metric_name(metric), format=".0%" if is_share(metric) else ".3~f", tickCount=6)
    return alt.X("seconds:Q", scale=across, axis=axis), alt.Y("low:Q", scale=up, axis=label)


def _spread_labels(rows: Sequence[Mapping[str, Any]], frame: _Frame) -> list[dict[str, Any]]:
    """Each row with an offset (``dx``, ``dy``, ``align``) at which its name covers no point, interval or earlier name."""
    boxes: list[tuple[float, float, float, float]] = []
    for row in rows:
        x, _ = frame.place(row["seconds"], row["score"])
        boxes.append((x - 6, frame.place(row["seconds"], row["high"])[1], x + 6, frame.place(row["seconds"], row["low"])[1]))
    placed = []
    for row in sorted(rows, key=lambda row: (not row["chosen"], -row["score"])):
        x, y = frame.place(row["seconds"], row["score"])
        width = 6.6 * len(row["name"])
        options = []
        for distance, (dy, right) in enumerate(itertools.product((0, -14, 14, -26, 26, -40, 40), (True, False))):
            left = x + 11 if right else x - 11 - width
            box = (left, y + dy - 8, left + width, y + dy + 8)
            outside = max(0.0, -box[0]) + max(0.0, box[2] - frame.width)
            options.append((sum(_overlap(box, other) for other in boxes) + 20 * outside + distance, dy, right, box))
        _, dy, right, box = min(options)
        boxes.append(box)
        placed.append({**row, "dx": 11 if right else -11, "dy": dy, "align": "left" if right else "right"})
    return placed


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    """Shared area of two boxes (left, top, right, bottom) in square pixels."""
    wide, high = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    return wide * high if wide > 0 and high > 0 else 0.0


def _curve_rows(curve: Curve) -> alt.Data:
    return _data([{"step": step, "value": value} for step, value in zip(curve.steps, curve.values, strict=True)])


def _loss_axes() -> dict[str, Any]:
    y = alt.Y("value:Q", scale=alt.Scale(zero=False), axis=alt.Axis(title=None, tickCount=4))
    return {"x": alt.X("step:Q", axis=alt.Axis(title="step", tickCount=5, grid=False), scale=alt.Scale(nice=False)), "y": y}


def _training_line(curve: Curve) -> alt.Chart:
    return (
        alt.Chart(_curve_rows(curve))
        .mark_line(strokeWidth=1.4, color=INKS["soft"], invalid="break-paths-show-domains")
        .encode(**_loss_axes())
    )


def _validation_line(curve: Curve) -> alt.Chart:
    point = {"filled": True, "fill": INKS["accent"], "size": 26}
    mark = alt.Chart(_curve_rows(curve)).mark_line(
        strokeWidth=2.2, color=INKS["accent"], point=point, invalid="break-paths-show-domains"
    )
    return mark.encode(**_loss_axes())


def _first(values: Sequence[Number]) -> float:
    return next(value for value in values if value is not None)


def _shown(metric: str, value: float) -> str:
    return f"{value:.1%}" if is_share(metric) else f"{value:.3f}"


def _svg(chart: alt.LayerChart, title: str, description: str) -> Html:
    """The chart as an SVG element that scales with its column, described for people who do not see it."""
    spec = chart.configure(aria=False, background="transparent", font=FONT).configure_view(stroke=None).to_dict()
    spec["config"]["axis"] = {
        "labelColor": INKS["muted"],
        "titleColor": INKS["muted"],
        "tickColor": INKS["line"],
        "domainColor": INKS["line"],
        "gridColor": INKS["line"],
        "labelFontSize": LABEL_SIZE,
        "titleFontSize": LABEL_SIZE,
        "titleFontWeight": "normal",
        "titlePadding": 10,
        "labelPadding": 6,
        "tickSize": 4,
    }
    drawn = vl_convert.vegalite_to_svg(spec, vl_version="6.4")
    number = next(_numbers)
    size = re.search(r'width="([\d.]+)" height="([\d.]+)"', drawn)
    width, height = (float(part) for part in size.groups()) if size else (600.0, 400.0)
    # Several charts share one page: their clip paths must not share names.
    body = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>c{number}-", drawn[drawn.index(">") + 1 : drawn.rindex("</svg>")])
    described = element("title", title, id=f"chart-{number}-title") + element("desc", description, id=f"chart-{number}-text")
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" class="chart" viewBox="0 0 {width:g} {height:g}" '
        f'style="max-width:{width:g}px" aria-labelledby="{text(f"chart-{number}-title chart-{number}-text")}">'
    )
    return Html(f"{head}{described}{body}</svg>")
