"""The charts of the page about a data set, drawn as SVG by hand: they carry the data that a reader points at.

Colours come from the page's stylesheet by class, so that they follow light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from uplift.data.explore.findings import Spread, TopicMap
from uplift.study.markup import Html, element, join

WIDTH, HEIGHT = 560, 150
LEFT, BOTTOM, TOP, RIGHT = 10, 24, 18, 14
MAP_WIDTH, MAP_HEIGHT, MAP_EDGE = 1000, 640, 26
COLOURS = 12
"""Classes `c0` to `c11` of the stylesheet; later topics and labels share the last one."""
LABELLED_TOPICS = 12
LETTER = 9.0
STEPS = (1, 2, 5)
LEAST_TICKS = 4


def short_number(value: float) -> str:
    """``950``, ``1.2k``, ``3M``."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def histogram(spread: Spread, unit: str, marks: Sequence[tuple[float, str]] = (), width: int = WIDTH) -> Html:
    """Rows by a number, bins of equal width on a logarithmic axis; ``marks``: (value, name) of lines to draw."""
    highest = max(spread.counts, default=1) or 1
    step = (width - LEFT - RIGHT) / max(1, len(spread.counts))
    room = HEIGHT - TOP - BOTTOM
    bars = []
    for index, count in enumerate(spread.counts):
        high = max(1.0, room * count / highest) if count else 0.0
        first, last = math.ceil(spread.edges[index]), math.floor(spread.edges[index + 1])
        span = f"{first:,}" if first >= last else f"{first:,} to {last:,}"
        bars.append(
            element(
                "rect",
                element("title", f"{span} {unit}: {count:,} rows"),
                x=_fixed(LEFT + index * step + 0.5),
                y=_fixed(HEIGHT - BOTTOM - high),
                width=_fixed(max(0.6, step - 1)),
                height=_fixed(high),
                class_="bin",
            )
        )
    axis = [_axis_mark(_place(spread, value, width), short_number(value)) for value in _ticks(spread, width)]
    lines = [_line(_place(spread, value, width), name, width) for value, name in marks if spread.least <= value <= spread.most]
    spoken = f"Half of the rows have at most {spread.p50:,.0f} {unit}, 95 % {spread.p95:,.0f}, all {spread.most:,}."
    base = element("line", x1=LEFT, x2=width - RIGHT, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM, class_="axis")
    return _picture(f"Rows by {unit}", spoken, (width, HEIGHT), join(bars, base, axis, lines))


def zipf_chart(points: Sequence[tuple[int, int]]) -> Html:
    """How often a word stands by its rank, both logarithmic."""
    ranks, counts = max(rank for rank, _ in points), max(count for _, count in points)

    def place(rank: float, count: float) -> tuple[float, float]:
        x = LEFT + 34 + (WIDTH - LEFT - RIGHT - 34) * math.log(rank) / max(math.log(ranks), 1e-9)
        return x, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * math.log(count) / max(math.log(counts), 1e-9)

    marks: list[Html] = []
    for value in _powers(1, ranks):
        x, y = place(value, 1)
        marks.append(element("text", short_number(value), x=_fixed(x), y=HEIGHT - 8, class_="tick", text_anchor="middle"))
    for value in _powers(1, counts):
        x, y = place(1, value)
        line = element("line", x1=_fixed(x), x2=WIDTH - RIGHT, y1=_fixed(y), y2=_fixed(y), class_="grid")
        name = element("text", short_number(value), x=_fixed(x - 6), y=_fixed(y + 4), class_="tick", text_anchor="end")
        marks += [line, name]
    path = " ".join(f"{_fixed(x)},{_fixed(y)}" for x, y in (place(*point) for point in points))
    curve = element("polyline", points=path, class_="curve")
    spoken = f"The commonest word stands {counts:,} times, the rarest of {ranks:,} words {points[-1][1]:,} times."
    return _picture("Count of a word by its rank", spoken, (WIDTH, HEIGHT), join(marks, curve))


def topic_map(found: TopicMap, labels: Sequence[str]) -> Html:
    """Every row a point, its text in a title that the page's script turns into a card; topics named at their middle."""
    numbers = {label: place for place, label in enumerate(labels)}
    points = []
    for point in found.points:
        x, y = _on_map(point.x, point.y)
        kinds = f"t{min(point.topic, COLOURS - 1)}"
        kinds += f" l{min(numbers.get(point.label, COLOURS - 1), COLOURS - 1)}" if point.label is not None else ""
        words = " · ".join(found.topics[point.topic].words)
        head = " · ".join(part for part in (point.place, point.label, words) if part)
        title = element("title", f"{head}\n{point.text}")
        points.append(element("circle", title, cx=_fixed(x), cy=_fixed(y), r=4.5, class_=kinds))
    names = _topic_names(found)
    spoken = "; ".join(f"{' '.join(topic.words)}: {topic.rows} rows" for topic in found.topics)
    inside = join(element("g", *points, class_="points"), element("g", *names, class_="names"))
    return _picture("Map of topics", f"Texts that are alike lie together. Topics: {spoken}.", (MAP_WIDTH, MAP_HEIGHT), inside)


def _topic_names(found: TopicMap) -> list[Html]:
    """The first two words of a topic over the middle of its points, moved apart where two would overlap."""
    boxes: list[tuple[float, float, float, float]] = []
    names = []
    for number, topic in enumerate(found.topics[:LABELLED_TOPICS]):
        own = [_on_map(point.x, point.y) for point in found.points if point.topic == number]
        name = " · ".join(topic.words[:2])
        if not own or not name:
            continue
        x, y = (sorted(values)[len(values) // 2] for values in zip(*own, strict=True))
        half = LETTER * len(name) / 2
        x = min(max(x, half + 4), MAP_WIDTH - half - 4)
        for _ in range(12):
            box = (x - half, y - 12, x + half, y + 6)
            if not any(box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3] for other in boxes):
                break
            y += 18 if y < MAP_HEIGHT - 60 else -18
        boxes.append((x - half, y - 12, x + half, y + 6))
        names.append(element("text", name, x=_fixed(x), y=_fixed(y), text_anchor="middle"))
    return names


def _on_map(x: float, y: float) -> tuple[float, float]:
    return MAP_EDGE + x * (MAP_WIDTH - 2 * MAP_EDGE), MAP_EDGE + y * (MAP_HEIGHT - 2 * MAP_EDGE)


# -- parts -------------------------------------------------------------------------------------------------------------
def _picture(title: str, spoken: str, size: tuple[int, int], content: Html) -> Html:
    return element(
        "svg", content, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {size[0]} {size[1]}", role="img",
        aria_label=f"{title}. {spoken}", class_="drawn",
    )  # fmt: skip


def _place(spread: Spread, value: float, width: int) -> float:
    """Where a number lies across, between the edges of its bin."""
    step = (width - LEFT - RIGHT) / max(1, len(spread.counts))
    for index, (low, high) in enumerate(zip(spread.edges, spread.edges[1:], strict=False)):
        if value <= high:
            return LEFT + step * (index + max(0.0, value - low) / (high - low))
    return width - RIGHT


def _ticks(spread: Spread, width: int) -> list[int]:
    """Round numbers that stand at least 44 pixels apart."""
    for steps in (STEPS, range(1, 10)):  # finer ones where the numbers hardly differ
        found: list[int] = []
        last = -math.inf
        for value in _powers(max(1, spread.least), spread.most, steps):
            x = _place(spread, value, width)
            if LEFT + 8 <= x <= width - RIGHT - 8 and x - last >= 44:
                found.append(value)
                last = x
        if len(found) >= LEAST_TICKS:
            break
    return found


def _powers(low: int, high: int, steps: Sequence[int] = (1,)) -> list[int]:
    return [step * 10**power for power in range(16) for step in steps if low <= step * 10**power <= high]


def _axis_mark(x: float, name: str) -> Html:
    tick = element("line", x1=_fixed(x), x2=_fixed(x), y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM + 4, class_="axis")
    return join(tick, element("text", name, x=_fixed(x), y=HEIGHT - 6, class_="tick", text_anchor="middle"))


def _line(x: float, name: str, width: int) -> Html:
    anchor, aside = ("end", -5) if x > 0.6 * width else ("start", 5)
    line = element("line", x1=_fixed(x), x2=_fixed(x), y1=4, y2=HEIGHT - BOTTOM, class_="mark")
    return join(line, element("text", name, x=_fixed(x + aside), y=13, class_="tick", text_anchor=anchor))


def _fixed(value: float) -> str:
    return f"{value:.1f}"
