"""Charts as inline SVG: lines, bars and intervals. Colours come from the page's classes `tone-0` ... `tone-5`."""

import dataclasses
import math
from collections.abc import Callable, Sequence

from lmx.eval.markup import Markup, element, join

TONES = 6
_CHARACTER = 6.6  # pixels, average width of a label's character at 12 px


@dataclasses.dataclass(frozen=True)
class Series:
    """A line: its name, (x, y) points in order of x, and its tone."""

    name: str
    points: Sequence[tuple[float, float]]
    tone: int = 0


@dataclasses.dataclass(frozen=True)
class Mark:
    """A value with an optional interval and what to write beside it."""

    name: str
    value: float
    text: str
    low: float | None = None
    high: float | None = None
    tone: int = 0


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that lie in [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if rough <= power * factor * (1 + 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(step * index, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A tick label: 0.25, 12, 3k, 1.5M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def thinned(points: Sequence[tuple[float, float]], limit: int = 240) -> list[tuple[float, float]]:
    """At most `limit` points, each the mean of its neighbours; values that are not finite are left out."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    size = math.ceil(len(finite) / limit)
    if size <= 1:
        return finite
    groups = [finite[start : start + size] for start in range(0, len(finite), size)]
    return [(group[-1][0], math.fsum(y for _, y in group) / len(group)) for group in groups]


def line_chart(series: Sequence[Series], *, x_label: str, y_label: str, width: int = 440, height: int = 210) -> Markup:
    """Lines over a common x axis, with a legend above when there is more than one."""
    lines = [dataclasses.replace(line, points=thinned(line.points)) for line in series]
    points = [point for line in lines for point in line.points]
    if not points:
        return element("p", f"No finite value of {y_label} was logged.", class_="note")
    (x_low, x_high), (y_low, y_high) = _range([0.0, *(x for x, _ in points)], 0.0), _range([y for _, y in points], 0.05)
    left, right, top, bottom = 44, width - 12, 24 if len(lines) > 1 else 10, height - 34

    def x_of(x: float) -> float:
        return left + (right - left) * (x - x_low) / (x_high - x_low)

    def y_of(y: float) -> float:
        return bottom - (bottom - top) * (y - y_low) / (y_high - y_low)

    parts = []
    for tick in ticks(y_low, y_high, 4):
        parts.append(element("line", class_="grid", x1=left, x2=right, y1=y_of(tick), y2=y_of(tick)))
        parts.append(element("text", short(tick), class_="tick end", x=left - 6, y=y_of(tick) + 4))
    for tick in ticks(x_low, x_high, 4):
        parts.append(element("text", short(tick), class_="tick middle", x=x_of(tick), y=bottom + 16))
    parts.append(element("line", class_="axis", x1=left, x2=right, y1=bottom, y2=bottom))
    parts.append(element("text", x_label, class_="tick end", x=right, y=bottom + 30))
    for line in lines:
        path = "M" + "L".join(f"{x_of(x):.1f} {y_of(y):.1f}" for x, y in line.points)
        if line.points:
            last_x, last_y = line.points[-1]
            parts.append(element("path", element("title", line.name), class_=f"line tone-{line.tone % TONES}", d=path))
            dot = element("title", f"{line.name}: {last_y:.4g} at {x_label} {short(last_x)}")
            parts.append(element("circle", dot, class_=f"dot tone-{line.tone % TONES}", cx=x_of(last_x), cy=y_of(last_y), r=2.5))
    parts.append(_legend([(line.name, line.tone) for line in lines if line.points], left))
    return _svg(width, height, parts, y_label)


def bar_chart(bars: Sequence[Mark], *, label: str, reference: Mark | None = None, width: int = 920) -> Markup:
    """Horizontal bars from zero, values written at their ends; `reference` is a dashed line across all of them."""
    if not bars:
        return Markup("")
    row, top = 30, 8 if reference is None else 26
    left = _gutter([bar.name for bar in bars])
    right = width - 24 - int(_CHARACTER * max(len(bar.text) for bar in bars))
    ends = [bar.high if bar.high is not None else bar.value for bar in bars] + ([reference.value] if reference else [])
    highest = max(*ends, 1e-9) if len(ends) > 1 else max(ends[0], 1e-9)

    def x_of(value: float) -> float:
        return left + (right - left) * max(value, 0.0) / highest

    height = top + row * len(bars) + 6
    parts = []
    for index, bar in enumerate(bars):
        y = top + row * index
        tone = f"tone-{bar.tone % TONES}"
        parts.append(element("text", bar.name, class_="label end", x=left - 10, y=y + 17))
        title = element("title", f"{bar.name}: {bar.text}")
        parts.append(
            element("rect", title, class_=f"bar {tone}", x=left, y=y + 4, width=max(x_of(bar.value) - left, 1.0), height=18, rx=2)
        )
        if bar.low is not None and bar.high is not None:
            parts.append(_whisker(x_of(bar.low), x_of(bar.high), y + 13))
        end = max(x_of(bar.value), x_of(bar.high if bar.high is not None else bar.value))
        parts.append(element("text", bar.text, class_="figure", x=end + 8, y=y + 17))
    if reference is not None:
        x = x_of(reference.value)
        parts.append(element("line", class_="reference", x1=x, x2=x, y1=top - 4, y2=height))
        parts.append(element("text", reference.text, class_="tick middle", x=x, y=top - 10))
    return _svg(width, height, parts, label)


def interval_chart(
    groups: Sequence[tuple[str, Sequence[Mark]]], *, label: str, reference: float | None = None, width: int = 920
) -> Markup:
    """Dots with intervals on a common scale from 0 to 1, one block of rows for each group, one row for each mark."""
    row, gap, top = 19, 12, 30
    left, right = _gutter([name for name, _ in groups]), width - 120
    rows = sum(len(marks) for _, marks in groups)
    height = top + row * rows + gap * len(groups) + 4

    def x_of(value: float) -> float:
        return left + (right - left) * value

    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(element("line", class_="grid", x1=x_of(tick), x2=x_of(tick), y1=top - 6, y2=height - gap))
        parts.append(element("text", f"{100 * tick:g}%", class_="tick middle", x=x_of(tick), y=top - 12))
    if reference is not None:
        parts.append(element("line", class_="reference", x1=x_of(reference), x2=x_of(reference), y1=top - 6, y2=height - gap))
    y = float(top)
    for name, marks in groups:
        parts.append(element("text", name, class_="label end", x=left - 10, y=y + row * len(marks) / 2 + 4))
        for mark in marks:
            parts.append(_interval(mark, x_of, y + row / 2))
            parts.append(element("text", mark.text, class_="figure small", x=right + 12, y=y + row / 2 + 4))
            y += row
        y += gap
    return _svg(width, height, parts, label)


def legend(names: Sequence[tuple[str, int]]) -> Markup:
    """A line of (name, tone) keys for charts that share one."""
    keys = [element("span", element("i", class_=f"key tone-{tone % TONES}"), name) for name, tone in names]
    return element("p", *keys, class_="legend")


def _interval(mark: Mark, x_of: Callable[[float], float], y: float) -> Markup:
    parts = [element("title", f"{mark.name}: {mark.text}")]
    if mark.low is not None and mark.high is not None:
        parts.append(element("line", class_="range", x1=x_of(mark.low), x2=x_of(mark.high), y1=y, y2=y))
    parts.append(element("circle", class_="dot", cx=x_of(mark.value), cy=y, r=4.5))
    return element("g", *parts, class_=f"tone-{mark.tone % TONES}")


def _whisker(low: float, high: float, y: float) -> Markup:
    return element(
        "path",
        class_="whisker",
        d=f"M{low:.1f} {y - 4:.1f}V{y + 4:.1f}M{low:.1f} {y:.1f}H{high:.1f}M{high:.1f} {y - 4:.1f}V{y + 4:.1f}",
    )


def _legend(names: Sequence[tuple[str, int]], x: float) -> Markup:
    if len(names) < 2:
        return Markup("")
    parts = []
    for name, tone in names:
        parts.append(element("line", class_=f"line tone-{tone % TONES}", x1=x, x2=x + 16, y1=10, y2=10))
        parts.append(element("text", name, class_="tick", x=x + 21, y=14))
        x += 21 + _CHARACTER * len(name) + 18
    return join(*parts)


def _gutter(names: Sequence[str]) -> int:
    return 24 + int(_CHARACTER * max(map(len, names), default=0))


def _range(values: Sequence[float], margin: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    spread = (high - low) or abs(high) or 1.0
    return (low - margin * spread, high + margin * spread) if high > low else (low - spread / 2, high + spread / 2)


def _svg(width: float, height: float, parts: Sequence[str], label: str) -> Markup:
    style = f"max-width:{width:g}px"
    return element("svg", *parts, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=label, class_="chart", style=style)
