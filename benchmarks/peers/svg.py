"""Two kinds of chart as SVG, each with several panels side by side: bars, and lines over a few steps.

They are drawn on white, so that they can be read on any page, and every bar and line is labelled where it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from xml.etree import ElementTree as Xml

INK, FAINT, GRID = "#1f2328", "#57606a", "#d8dee4"
OURS, PALE, OTHER, YARDSTICK = "#0969da", "#9ec5f4", "#afb8c1", "#57606a"
COLOURS = ("#0969da", "#57606a", "#bf8700", "#8250df", "#1a7f37", "#cf222e", "#bf3989")
"""Of lines, in their order: ours first."""

WIDTH, MARGIN, HEAD, FOOT = 860, 20, 62, 26
BAR, GAP = 15, 7


class Bar(NamedTuple):
    """A labelled value; one that is not there is passed over. ``pale`` is a second bar's colour in a group of two."""

    name: str
    values: Sequence[float | None]
    colour: str
    pale: str = PALE


class Chart:
    """The frame: title, a line below it that says what is shown, and what else is drawn."""

    def __init__(self, title: str, subtitle: str, height: float) -> None:
        self.height = height
        self.root = Xml.Element(
            "svg",
            {
                "xmlns": "http://www.w3.org/2000/svg",
                "viewBox": f"0 0 {WIDTH} {height:g}",
                "font-family": "system-ui, 'Segoe UI', 'Liberation Sans', sans-serif",
                "font-size": "12",
                "role": "img",
                "aria-label": title,
            },
        )
        self._add("rect", width=WIDTH, height=height, rx=6, fill="#ffffff")
        self.text(MARGIN, 26, title, size=16, weight="bold")
        self.text(MARGIN, 46, subtitle, fill=FAINT)

    def _add(self, tag: str, **attributes: object) -> Xml.Element:
        written = {
            name.replace("_", "-"): f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
            for name, value in attributes.items()
        }
        return Xml.SubElement(self.root, tag, written)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: int = 12,
        fill: str = INK,
        weight: str = "normal",
        anchor: str = "start",
    ) -> None:
        element = self._add("text", x=x, y=y, font_size=size, fill=fill, font_weight=weight, text_anchor=anchor)
        element.text = words

    def bar(self, x: float, y: float, width: float, colour: str, height: float = BAR) -> None:
        self._add("rect", x=x, y=y, width=max(width, 1.0), height=height, rx=2, fill=colour)

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float = 2.0) -> None:
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._add("polyline", points=places, fill="none", stroke=colour, stroke_width=width, stroke_linejoin="round")

    def dot(self, x: float, y: float, colour: str) -> None:
        self._add("circle", cx=x, cy=y, r=3.5, fill=colour, stroke="#ffffff", stroke_width=1)

    def __str__(self) -> str:
        Xml.indent(self.root, " ")
        return Xml.tostring(self.root, encoding="unicode") + "\n"


def bars(title: str, subtitle: str, panels: Mapping[str, Sequence[Bar]]) -> str:
    """Horizontal bars, a panel for each title, two panels to a row. Each panel has a scale of its own."""
    panels = {name: [bar for bar in group if any(bar.values)] for name, group in panels.items()}
    grid = [list(panels.items())[at : at + 2] for at in range(0, len(panels), 2)]
    heights = [30 + max(sum(_thickness(bar) for bar in group) for _, group in row) for row in grid]
    chart = Chart(title, subtitle, HEAD + sum(heights) + FOOT - 14)
    column = (WIDTH - 2 * MARGIN) / max(len(row) for row in grid)
    top: float = HEAD
    for row, height in zip(grid, heights, strict=True):
        for number, (name, group) in enumerate(row):
            _bar_panel(chart, MARGIN + number * column, top, column - 16, name, group)
        top += height
    return str(chart)


def _thickness(bar: Bar) -> int:
    return sum(value is not None for value in bar.values) * (BAR + 1) + GAP


def _bar_panel(chart: Chart, left: float, top: float, width: float, name: str, group: Sequence[Bar]) -> None:
    names, numbers = 118, 62
    longest = max((value for bar in group for value in bar.values if value), default=1.0)
    chart.text(left, top + 16, name, weight="bold", size=13)
    y = top + 26
    for bar in group:
        ours = bar.colour == OURS
        middle = y + (_thickness(bar) - GAP) / 2 + 4
        chart.text(left + names - 8, middle, bar.name, anchor="end", weight="bold" if ours else "normal")
        for value, colour in zip(bar.values, (bar.colour, bar.pale), strict=False):
            if value:
                length = (width - names - numbers) * value / longest
                chart.bar(left + names, y, length, colour)
                chart.text(left + names + length + 6, y + 12, short(value), fill=INK if ours else FAINT)
                y += BAR + 1
        y += GAP


def lines(
    title: str, subtitle: str, steps: Sequence[str], series: Mapping[str, Sequence[float | None]], unit: str, log: bool
) -> str:
    """A line for each series over evenly spaced steps, named at its right end."""
    height, left, right, top, bottom = 420, 84, 140, 80, 46
    chart = Chart(title, subtitle, height)
    values = [value for line in series.values() for value in line if value]
    ticks = log_ticks(min(values), max(values)) if log else even_ticks(max(values))

    def place(value: float) -> float:
        low, high, at = (math.log(each) if log else each for each in (ticks[0], ticks[-1], value))
        return height - bottom - (height - top - bottom) * (at - low) / (high - low)

    def step(number: int) -> float:
        return left + 24 + (WIDTH - left - right - 40) * number / max(len(steps) - 1, 1)

    for tick in ticks:
        chart.line([(left, place(tick)), (WIDTH - right, place(tick))], GRID, 1)
        chart.text(left - 8, place(tick) + 4, f"{short(tick)} {unit}", anchor="end", fill=FAINT)
    for number, name in enumerate(steps):
        chart.text(step(number), height - bottom + 22, name, anchor="middle", fill=FAINT)
    ends = {}
    for (name, line), colour in reversed(list(zip(series.items(), COLOURS, strict=False))):
        points = [(step(number), place(value)) for number, value in enumerate(line) if value]
        chart.line(points, colour, 3.0 if colour == OURS else 1.8)
        for x, y in points:
            chart.dot(x, y, colour)
        ends[name] = (points[-1][1], line, colour)
    heights = spread([y for y, _, _ in ends.values()], 15)
    for y, (name, (_, line, colour)) in zip(heights, ends.items(), strict=True):
        last = next(value for value in reversed(line) if value)
        words = f"{name}  {short(last)}"
        chart.text(WIDTH - right + 6, y + 4, words, fill=colour, weight="bold" if colour == OURS else "normal")
    return str(chart)


def spread(places: Sequence[float], apart: float) -> list[float]:
    """The same places, moved as little as is needed to be so far apart, in their order of height."""
    order = sorted(range(len(places)), key=places.__getitem__)
    moved = [places[number] for number in order]
    for _ in range(100):
        for a in range(len(moved) - 1):
            if (missing := apart - (moved[a + 1] - moved[a])) > 0:
                moved[a] -= missing / 2
                moved[a + 1] += missing / 2
    result = [0.0] * len(places)
    for number, place in zip(order, moved, strict=True):
        result[number] = place
    return result


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10 ... from just below the lowest to just above the highest value."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**decade for decade in decades for factor in (1, 2, 5)]
    first = max(number for number, tick in enumerate(ticks) if tick <= low)
    last = min(number for number, tick in enumerate(ticks) if tick >= high)
    return ticks[first : max(last, first + 1) + 1]


def even_ticks(high: float) -> list[float]:
    """From 0 to just above the highest value, in four to eight round steps."""
    raw = high / 4
    size = 10.0 ** math.floor(math.log10(raw))
    step = max(size * factor for factor in (1, 2, 2.5, 5) if size * factor <= raw)
    return [step * number for number in range(math.ceil(high / step) + 1)]


def short(value: float) -> str:
    """With two or three significant digits, and thousands set apart."""
    if value >= 100:
        digits = 2 if value < 1000 else 3
        return f"{round(value, digits - 1 - math.floor(math.log10(value))) if value >= 1000 else round(value):,.0f}"
    return f"{value:.3g}" if value >= 10 else f"{value:.2g}"
