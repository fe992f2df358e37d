"""The map of the problems as SVG: a square for each, by the change that a method brings and whether it is told apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..pictures import WIDTH, digits, svg, text_at
from .contrasts import SIGNS

_SIDE = 9.0
_LEFT, _GAP = 74.0, 14.0
STRONG = 0.5
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
    title: str,
    notes: Sequence[str],
) -> str:
    """Panels in a grid, all with the same problems in the same places.

    Args:
        panels: The squares of each panel, row by row: by the heading of its line of panels, then by its own.
        rows: The names of the groups of rows.
        columns: The names of the groups of columns, by that of the larger group that they are in.
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
            if not place:
                step = tall / len(rows)
                parts += [
                    text_at(_LEFT - 5, top + (n + 0.5) * step + 4, name, "quiet", "end") for n, name in enumerate(rows)
                ]
        top += tall + 32
    for note in notes:
        parts.append(text_at(WIDTH / 2, top + 10, note, "quiet", "middle"))
        top += 16
    return svg(parts, top + 6, title)


def _squares(squares: Sequence[Sequence[Square]], left: float, top: float) -> list[str]:
    found = []
    for row, line in enumerate(squares):
        for column, each in enumerate(line):
            side = _SIDE - 1 if each.told else 4.0
            x, y = (at + _SIDE * (number + 0.5) - side / 2 for at, number in ((left, column), (top, row)))
            lost = not math.isfinite(each.change)
            _, color = SIGNS["not told apart" if lost else "better" if each.change < 0 else "worse"]
            strength = 1.0 if lost else 0.25 + 0.75 * min(1.0, abs(each.change) / STRONG)
            found.append(
                f'<rect x="{digits(x)}" y="{digits(y)}" width="{digits(side)}" height="{digits(side)}" fill="{color}" '
                f'fill-opacity="{strength:.2f}"/>'
            )
    return found


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
