"""The cost of balancing against the number of tasks, as a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from equipoise.bench._methods import FLOOR, METHODS
from equipoise.bench._ratio import Ratio, paired_ratio
from equipoise.bench._record import Record

_WIDTH, _HEIGHT = 800, 470
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 580, 18, 418
_LABEL_HEIGHT = 15
_TEXT, _QUIET, _GRID = "#1f2328", "#8a9099", "#e8eaed"
_COLORS = (
    *("#1f6fd1", "#7fb2ee", "#1a936f", "#d1495b", "#e79aa4", "#e08e0b", "#8e44ad", "#4d4d4d", "#00838f", "#795548"),
    *("#b5b500", "#5c6bc0"),
)


@dataclass(frozen=True)
class _Axis:
    """A logarithmic axis from ``low`` to ``high``, drawn from pixel ``start`` to pixel ``end``."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        """The pixel of a value."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return round(self.start + share * (self.end - self.start), 1)


def to_svg(records: Sequence[Record], family: str = "mlp_") -> str:
    """Time per step over that of the plain step against the number of tasks, both axes logarithmic.

    A line for every method, with the 95 % intervals of its points where there are enough rounds for them.

    Args:
        records: Any; those of workloads called ``family`` and a number, on one device, are shown.
        family: The beginning of their names.

    Raises:
        ValueError: There are not two of them.
    """
    shown = sorted((r for r in records if r.workload.removeprefix(family).isdigit()), key=lambda r: r.num_tasks)
    if len(shown) < 2:
        raise ValueError(f"wanted records of at least two workloads called {family} and a number; found {len(shown)}")
    lines = {
        method: [
            (record.num_tasks, paired_ratio(record.costs[method].seconds, record.costs[FLOOR].seconds))
            for record in shown
            if method in record.costs
        ]
        for method in METHODS
        if method != FLOOR
    }
    lines = {method: points for method, points in lines.items() if points}
    ratios = [ratio.median for points in lines.values() for _, ratio in points]
    numbers = [record.num_tasks for record in shown]
    x = _Axis(numbers[0] / 1.1, numbers[-1] * 1.1, _LEFT, _RIGHT)
    y = _Axis(min(0.8, *ratios) * 0.95, max(2.0, *ratios) * 1.1, _BOTTOM, _TOP)
    colors = dict(zip([method for method in METHODS if method != FLOOR], _COLORS, strict=True))
    body = [*_frame(x, y, numbers)]
    for method, points in lines.items():
        body += _line(points, x, y, colors[method])
    body += _labels({method: (y.place(points[-1][1].median), colors[method]) for method, points in lines.items()})
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
            f'height="{_HEIGHT}" font-family="system-ui, sans-serif" font-size="12" fill="{_TEXT}">',
            "<title>Time per step over that of the plain step, against the number of tasks</title>",
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
            *body,
            "</svg>",
            "",
        ]
    )


def _frame(x: _Axis, y: _Axis, numbers: Sequence[int]) -> list[str]:
    """Grid, ticks and titles."""
    parts = []
    decades = range(math.floor(math.log10(y.low)), math.ceil(math.log10(y.high)) + 1)
    for level in (digit * 10.0**decade for decade in decades for digit in (1, 2, 5)):
        if y.low <= level <= y.high:
            color = _QUIET if level == 1 else _GRID
            height = y.place(level)
            parts.append(f'<path d="M{_LEFT} {height}H{_RIGHT}" stroke="{color}"/>')
            parts.append(f'<text x="{_LEFT - 8}" y="{height + 4}" text-anchor="end">{level:g}</text>')
    for number in numbers:
        across = x.place(number)
        parts.append(f'<path d="M{across} {_BOTTOM}v5" stroke="{_QUIET}"/>')
        parts.append(f'<text x="{across}" y="{_BOTTOM + 19}" text-anchor="middle">{number}</text>')
    parts.append(f'<path d="M{_LEFT} {_TOP}V{_BOTTOM}H{_RIGHT}" fill="none" stroke="{_QUIET}"/>')
    middle = (_LEFT + _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_BOTTOM + 40}" text-anchor="middle">number of tasks T</text>')
    height = (_TOP + _BOTTOM) / 2
    parts.append(
        f'<text transform="translate(16 {height}) rotate(-90)" text-anchor="middle">'
        "time per step / time of the plain step</text>"
    )
    return parts


def _line(points: Sequence[tuple[int, Ratio]], x: _Axis, y: _Axis, color: str) -> list[str]:
    places = [(x.place(number), y.place(ratio.median)) for number, ratio in points]
    path = "L".join(f"{across} {height}" for across, height in places)
    parts = [f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="1.8"/>']
    if places[-1][0] < x.place(x.high / 1.1):  # leads from a line that ends early to its name
        end = f"M{places[-1][0]} {places[-1][1]}H{_RIGHT}"
        parts.append(f'<path d="{end}" fill="none" stroke="{color}" stroke-dasharray="1 5"/>')
    for (across, height), (_, ratio) in zip(places, points, strict=True):
        if not math.isnan(ratio.low):
            bottom, top = (min(_BOTTOM, max(_TOP, y.place(value))) for value in (ratio.low, ratio.high))
            parts.append(f'<path d="M{across} {bottom}V{top}" stroke="{color}"/>')
        parts.append(f'<circle cx="{across}" cy="{height}" r="3" fill="{color}"/>')
    return parts


def _labels(ends: dict[str, tuple[float, str]]) -> list[str]:
    """A name at the right of each line's end, moved down where it would cover another, with a leader to the end."""
    parts, last = [], -math.inf
    ordered = sorted(ends.items(), key=lambda entry: entry[1][0])
    overflow = max(0.0, _stacked([height for _, (height, _) in ordered]) - _BOTTOM)
    for method, (end, color) in ordered:
        height = round(max(end - overflow, last + _LABEL_HEIGHT), 1)
        last = height
        parts.append(f'<path d="M{_RIGHT + 4} {end}L{_RIGHT + 14} {height}" fill="none" stroke="{color}"/>')
        parts.append(f'<text x="{_RIGHT + 18}" y="{height + 4}" fill="{color}">{escape(method)}</text>')
    return parts


def _stacked(heights: Sequence[float]) -> float:
    """Where the last label comes to stand."""
    last = -math.inf
    for height in heights:
        last = max(height, last + _LABEL_HEIGHT)
    return last
