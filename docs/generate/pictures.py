"""The pages' pictures as SVG, the same to the letter each time: curves and points, and the parts of others.

They are as wide as a telephone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import chain

from equipoise.lab.results.palette import METHOD_COLORS, TASK_COLORS
from equipoise.lab.results.svg import svg

WIDTH = 420
COLORS = tuple(dict.fromkeys((*METHOD_COLORS[1:], *TASK_COLORS)))
"""The colours of series; all can be seen on white and on black."""


def digits(value: float) -> str:
    """A length as text."""
    return f"{value:.1f}".removesuffix(".0")


def text_at(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    """A text: ``head``, ``quiet`` or plain."""
    marks = (f' class="{kind}"' if kind else "") + (f' text-anchor="{anchor}"' if anchor != "start" else "")
    return f'<text x="{digits(x)}" y="{digits(y)}"{marks}>{escape(text)}</text>'


@dataclass(frozen=True)
class Axis:
    """The numbers along one side of a panel.

    Attributes:
        title: The quantity.
        log: Whether its scale is logarithmic.
        low, high: The ends; None: those of the values.
    """

    title: str
    log: bool = False
    low: float | None = None
    high: float | None = None

    def over(self, values: Sequence[float]) -> Scale:
        """The scale for some values."""
        sound = [value for value in values if math.isfinite(value) and (value > 0 or not self.log)]
        low, high = (min(sound), max(sound)) if sound else (1.0, 2.0)
        low, high = (low if self.low is None else self.low), (high if self.high is None else self.high)
        if self.log:
            spare = (high / low) ** 0.04 if high > low else 1.2
            return Scale(low if self.low is not None else low / spare, high * spare, True)
        spare = 0.04 * (high - low) or 0.1 * abs(high) or 1.0
        return Scale(low if self.low is not None else low - spare, high + spare, False)


@dataclass(frozen=True)
class Scale:
    """A part of the numbers.

    Attributes:
        low: The smallest.
        high: The largest.
        log: Whether it is logarithmic.
    """

    low: float
    high: float
    log: bool

    def part(self, value: float) -> float:
        """Where a number lies, from 0 to 1; beyond the ends, at the end."""
        if self.log:
            found = math.log(max(value, 1e-300) / self.low) / math.log(self.high / self.low)
        else:
            found = (value - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, found))

    def ticks(self) -> list[float]:
        """About four round numbers."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for leads in ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 5), (1, 3), (1,)):
                found = [t for e in decades for lead in leads if self.low <= (t := lead * 10.0**e) <= self.high]
                if len(found) <= 6:
                    return found
            return found[:: -(-len(found) // 6)]
        step = 10 ** math.floor(math.log10(self.high - self.low))
        step = next(size * step for size in (0.1, 0.2, 0.5, 1.0, 2.0) if (self.high - self.low) / (size * step) <= 5)
        first = math.ceil(self.low / step)
        return [round(n * step, 12) for n in range(first, math.floor(self.high / step) + 1)]


@dataclass(frozen=True)
class Series:
    """Numbers of one method.

    Attributes:
        label: Its name in the legend; those with the same name have the same colour and stand there once.
        x, y: The numbers.
        kind: A line, a dashed line, or points.
        ends: The interval of each number; NaN for none.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    kind: str = "line"
    ends: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Panel:
    """Series in one system of axes.

    Attributes:
        heading: What is shown.
        series: The series.
        x: The horizontal axis.
        y: The vertical axis.
        tall: Its height.
    """

    heading: str
    series: Sequence[Series]
    x: Axis
    y: Axis
    tall: float = 150.0


def plot(panels: Sequence[Panel], title: str, note: str = "") -> str:
    """Panels one below the other, with one legend.

    Args:
        panels: The panels.
        title: The picture in words.
        note: A line below the legend.
    """
    labels = list(dict.fromkeys(series.label for panel in panels for series in panel.series))
    colors = {label: COLORS[number % len(COLORS)] for number, label in enumerate(labels)}
    left, right, top = 52.0, WIDTH - 14.0, 4.0
    parts: list[str] = []
    for panel in panels:
        across = panel.x.over([value for series in panel.series for value in series.x])
        shown = [value for series in panel.series for value in (*series.y, *chain(*series.ends))]
        up = panel.y.over(shown)
        parts.append(text_at(6, top + 14, panel.heading, "head"))
        parts.append(text_at(6, top + 31, panel.y.title, "quiet"))
        top += 40
        parts += _panel(panel.series, colors, across, up, (left, right, top, panel.tall))
        parts.append(text_at((left + right) / 2, top + panel.tall + 31, panel.x.title, "quiet", "middle"))
        top += panel.tall + 44
    kinds = {series.label: series.kind for panel in reversed(panels) for series in reversed(panel.series)}
    for number, label in enumerate(labels):
        row, column = divmod(number, 2)
        at, down = 14 + column * (WIDTH - 20) / 2, top + 12 + 17 * row
        parts.append(_mark(at + 9, down - 4, colors[label], kinds[label]))
        parts.append(text_at(at + 24, down, label))
    top += 17 * -(-len(labels) // 2) + 12
    return svg([*parts, text_at(14, top, note, "quiet")] if note else parts, WIDTH, top + 8, title)


def _mark(x: float, y: float, color: str, kind: str) -> str:
    if kind == "points":
        return f'<circle cx="{digits(x)}" cy="{digits(y)}" r="3.5" fill="{color}"/>'
    dash = ' stroke-dasharray="5 3"' if kind == "dashed" else ""
    return f'<path d="M{digits(x - 9)} {digits(y)}h18" stroke="{color}" stroke-width="2.5"{dash}/>'


def _panel(
    some: Sequence[Series],
    colors: Mapping[str, str],
    across: Scale,
    up: Scale,
    box: tuple[float, float, float, float],
) -> list[str]:
    left, right, top, tall = box

    def at(x: float, y: float) -> tuple[str, str]:
        return digits(left + across.part(x) * (right - left)), digits(top + tall - up.part(y) * tall)

    parts = [f'<path class="axis" d="M{digits(left)} {digits(top)}v{digits(tall)}H{digits(right)}"/>']
    for tick in across.ticks():
        where, _ = at(tick, up.low)
        parts.append(f'<path class="grid" d="M{where} {digits(top)}v{digits(tall)}"/>')
        parts.append(text_at(float(where), top + tall + 15, f"{tick:g}", "quiet", "middle"))
    for tick in up.ticks():
        _, where = at(across.low, tick)
        parts.append(f'<path class="grid" d="M{digits(left)} {where}H{digits(right)}"/>')
        parts.append(text_at(left - 5, float(where) + 4, f"{tick:g}", "quiet", "end"))
    for series in some:
        color = colors[series.label]
        sound = [at(a, b) for a, b in zip(series.x, series.y, strict=True) if math.isfinite(a) and math.isfinite(b)]
        if series.kind == "points":
            parts += [f'<circle cx="{a}" cy="{b}" r="3" fill="{color}" fill-opacity=".75"/>' for a, b in sound]
        elif sound:
            dash = ' stroke-dasharray="5 3"' if series.kind == "dashed" else ""
            line = "L".join(f"{a} {b}" for a, b in sound)
            parts.append(f'<path d="M{line}" fill="none" stroke="{color}" stroke-width="1.8"{dash}/>')
        for x, (low, high) in zip(series.x, series.ends, strict=False):
            if math.isfinite(low + high):
                (a, bottom), (_, upper) = at(x, low), at(x, high)
                parts.append(f'<path d="M{a} {bottom}V{upper}" stroke="{color}"/>')
        if series.ends:
            parts += [f'<circle cx="{a}" cy="{b}" r="3" fill="{color}"/>' for a, b in sound]
    return parts
