"""The map of the problems as SVG: a square for each, by the change that a method brings and whether it is told apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from equipoise.lab.results.svg import svg

from ..pictures import WIDTH, digits, text_at
from .contrasts import SIGNS

_SIDE = 9.0
_LEFT, _GAP = 74.0, 14.0
_STRONG = 0.5
"""A change of the logarithm from which on the colour is full."""


@dataclass(frozen=True)
class Square:
    """A problem of a panel.

    Attributes:
        change: The logarithm of the method's loss over its opponent's; not finite where a run diverged.
        told: Whether the method is ahead or behind.
    """

    change: float
    told: bool


def heat_map(
    panels: Mapping[str, Mapping[str, Sequence[Sequence[Square]]]],
    rows: Sequence[str],
    columns: Mapping[str, Sequence[str]],
    axes: tuple[str, str],
    title: str,
    notes: Sequence[str],
) -> str:
    """Panels in a grid, all with the same problems in the same places.

    Args:
        panels: The squares of each panel, row by row: by the heading of its line of panels, then by its own.
        rows: The names of the groups of rows.
        columns: The names of the groups of columns, by that of the larger group that they are in.
        axes: The titles of the rows and of the columns.
        title: The picture in words.
        notes: Lines below the panels.
    """
    parts: list[str] = []
    top = 4.0
    for line, some in panels.items():
        parts.append(text_at(6, top + 13, line, "head"))
        top += 34
        for place, (heading, squares) in enumerate(some.items()):
            wide, tall = _SIDE * len(squares[0]), _SIDE * len(squares)
            left = _LEFT + place * (wide + _GAP)
            parts.append(text_at(left + wide / 2, top - 4, heading, "quiet", "middle"))
            parts += _squares(squares, left, top)
            parts += _column_names(columns, left, top + tall, wide)
            parts.append(text_at(left + wide / 2, top + tall + 39, axes[1], "quiet", "middle"))
            if not place:
                step = tall / len(rows)
                parts.append(text_at(_LEFT - 5, top - 4, axes[0], "quiet", "end"))
                parts += [
                    text_at(_LEFT - 5, top + (n + 0.5) * step + 4, name, "quiet", "end") for n, name in enumerate(rows)
                ]
        top += tall + 50
    parts += _legend(top)
    top += 44
    for note in notes:
        parts.append(text_at(WIDTH / 2, top + 10, note, "quiet", "middle"))
        top += 16
    return svg(parts, WIDTH, top + 6, title)


def _squares(squares: Sequence[Sequence[Square]], left: float, top: float) -> list[str]:
    return [
        _square(each, left + _SIDE * (column + 0.5), top + _SIDE * (row + 0.5))
        for row, line in enumerate(squares)
        for column, each in enumerate(line)
    ]


def _square(each: Square, x: float, y: float) -> str:
    """A square around a point."""
    side = _SIDE - 1 if each.told else 4.0
    lost = not math.isfinite(each.change)
    _, color = SIGNS["not told apart" if lost else "better" if each.change < 0 else "worse"]
    strength = 1.0 if lost else 0.25 + 0.75 * min(1.0, abs(each.change) / _STRONG)
    return (
        f'<rect x="{digits(x - side / 2)}" y="{digits(y - side / 2)}" width="{digits(side)}" height="{digits(side)}" '
        f'fill="{color}" fill-opacity="{strength:.2f}"/>'
    )


def _legend(top: float) -> list[str]:
    """The scale of the colours, and what a square says."""
    first, last = (f"{100 * math.expm1(change):+.0f} %" for change in (-_STRONG, _STRONG))
    steps, begin = 9, 172.0
    shades = [Square(_STRONG * (2 * step / (steps - 1) - 1), told=True) for step in range(steps)]
    parts = [_square(each, begin + (step + 0.5) * _SIDE, top + 8) for step, each in enumerate(shades)]
    parts.append(text_at(begin - 6, top + 12, f"smaller loss, {first} or less", "quiet", "end"))
    parts.append(text_at(begin + steps * _SIDE + 6, top + 12, f"{last} or more, larger loss", "quiet"))
    marks = {"ahead or behind": Square(_STRONG, True), "no difference": Square(_STRONG, False)}
    marks["a run diverged"] = Square(math.nan, True)
    for number, (name, each) in enumerate(marks.items()):
        parts += [_square(each, 36 + 130 * number, top + 28), text_at(46 + 130 * number, top + 32, name, "quiet")]
    return parts


def _column_names(columns: Mapping[str, Sequence[str]], left: float, top: float, wide: float) -> list[str]:
    parts = []
    groups = [(large, name) for large, names in columns.items() for name in names]
    step = wide / len(groups)
    for number, (_, name) in enumerate(groups):
        parts.append(text_at(left + (number + 0.5) * step, top + 12, name, "quiet", "middle"))
    for number, large in enumerate(columns):
        each = wide / len(columns)
        parts.append(text_at(left + (number + 0.5) * each, top + 25, large, "quiet", "middle"))
        if number:
            parts.append(f'<path class="axis" d="M{digits(left + number * each - 0.5)} {digits(top - 108)}v112"/>')
    return parts
