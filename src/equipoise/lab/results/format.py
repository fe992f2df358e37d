"""Numbers and names as text."""

from __future__ import annotations

import math

from equipoise.lab.results.cells import HIDES, TURNED, Cell, Row
from equipoise.lab.results.statistics import Estimate

MARKS = {"better": "✓", "worse": "✗"}
"""Sign of a verdict behind a difference."""
WITHHELD = {TURNED: "†", HIDES: "‡"}
"""Sign of the reason why there is no mark."""


def format_estimate(value: Estimate, *, compact: bool = False, signed: bool = False) -> str:
    """``mean ± half-width``, rounded to two digits of the half-width; a value without interval says why.

    Args:
        value: The estimate.
        compact: Write the half-width in brackets, in units of the mean's last digit.
        signed: Write a plus before positive numbers.

    Example:
        >>> format_estimate(Estimate(0.53218, 0.01034, n=5))
        '0.532 ± 0.010'
        >>> format_estimate(Estimate(0.53218, 0.01034, n=5), compact=True, signed=True)
        '+0.532(10)'
        >>> format_estimate(Estimate(0.53218, float("nan"), n=1))
        '0.5322 (n = 1)'
    """
    if not math.isfinite(value.mean):
        return "not defined"
    alone = math.isnan(value.half_width)
    largest = abs(value.mean) if alone else max(abs(value.mean), value.half_width)
    magnitude = math.floor(math.log10(largest)) if largest else 0
    last = magnitude - 3 if alone or not value.half_width else math.floor(math.log10(value.half_width)) - 1
    last = max(last, magnitude - 5)
    scale, exponent = (1.0, "") if -4 <= magnitude < 6 else (10.0**magnitude, f"e{magnitude}")
    decimals = max(0, -last + (magnitude if exponent else 0))
    mean = f"{round(value.mean / scale, decimals) + 0.0:{'+' if signed else ''}.{decimals}f}"  # + 0.0 turns -0 into 0
    if alone:
        return f"{mean}{exponent}" if compact else f"{mean}{exponent} (n = {value.n})"
    width = f"{value.half_width / scale:.{decimals}f}"
    if compact:
        digits = width if float(width) >= 1 and decimals else width.replace(".", "").lstrip("0") or "0"
        return f"{mean}({digits}){exponent}"
    return f"({mean} ± {width}){exponent}" if exponent else f"{mean} ± {width}"


def format_value(cell: Cell, *, compact: bool = False, signed: bool = False) -> str:
    """The cell's value with its note. A diverged run, or words, take the place of the value."""
    if cell.diverged:
        return f"{cell.diverged} run{'s' if cell.diverged > 1 else ''} diverged"
    note = f" ({cell.note})" if cell.note else ""
    return f"{cell.text or format_estimate(cell.value, compact=compact, signed=signed)}{note}"


def format_sign(cell: Cell) -> str:
    """The mark of the cell's difference, or the sign of the reason why it has none."""
    return MARKS[cell.verdict] if cell.verdict else WITHHELD.get(cell.withheld, "")


def format_difference(cell: Cell, *, compact: bool = False) -> str:
    """The cell's difference with its sign; empty where there is none to show."""
    if cell.difference is None or cell.diverged or cell.text or not math.isfinite(cell.difference.mean):
        return ""
    return f"{format_estimate(cell.difference, compact=compact, signed=True)} {format_sign(cell)}".rstrip()


def format_last(cell: Cell, *, compact: bool = False, signed: bool = False) -> str:
    """The cell's value at the last step; empty where there is none to show."""
    if cell.last is None or cell.diverged or cell.text:
        return ""
    return format_estimate(cell.last, compact=compact, signed=signed)


def format_cell(cell: Cell, *, relative: bool = False, compact: bool = False) -> str:
    """All of the cell in one line: its value, then its difference in brackets, unless the value itself is the difference."""
    value, difference = format_value(cell, compact=compact, signed=relative), format_difference(cell, compact=compact)
    if relative:
        return f"{value} {'' if cell.diverged or cell.text else format_sign(cell)}".rstrip()
    sign = f" {format_sign(cell)}" if difference and format_sign(cell) else ""
    return f"{value} ({difference.removesuffix(sign)}){sign}" if difference else value


def format_unit(row: Row) -> str:
    """Metric or unit, with an arrow that points to the better side."""
    return row.unit if row.higher_is_better is None else f"{row.unit} {'↑' if row.higher_is_better else '↓'}"
