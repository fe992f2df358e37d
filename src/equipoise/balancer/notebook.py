"""A balancer as a notebook shows it: a table of its tasks."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import isfinite, isnan, nan
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from equipoise.balancer.controls import Controls

_POINTS = 60
"""The points of a curve, at most."""
_WIDTH, _HEIGHT = 120, 20
"""Pixels of a bar and of a curve."""
_BAR, _GROUND = "#2f7fc1", "rgba(128,128,128,0.25)"
"""Colours that can be seen on white and on black."""


def table(balancer: Controls) -> str:
    """The tasks in HTML that needs nothing else: a row for each, with the weight as a number and as a bar.

    The gradient norm and the loss of the last step are there where they are known, and the course of the weight where the
    balancer keeps its history.
    """
    tasks, known, weights = balancer.tasks, {}, [nan] * len(balancer.tasks)
    if not balancer.weights.is_meta:
        known, weights = balancer.scalars(), balancer.weights.tolist()
    largest = max((weight for weight in weights if isfinite(weight)), default=0.0)
    columns = {
        "task": [_cell(escape(task), "left") for task in tasks],
        "weight": [_number(weight) for weight in weights],
        "": [_cell(_bar(weight / largest if largest > 0 else 0.0)) for weight in weights],
    }
    for title, name in {"gradient norm": "gradient_norm", "loss": "loss"}.items():
        numbers = [known.get(f"{name}/{task}", nan) for task in tasks]
        if not all(map(isnan, numbers)):
            columns[title] = [_number(number) for number in numbers]
    if kept := balancer._kept:
        number = min(len(kept), _POINTS)
        some = [kept[i * (len(kept) - 1) // max(number - 1, 1)]["weights"].tolist() for i in range(number)]
        columns[f"weight, last {len(kept)} steps"] = [_cell(_curve(course)) for course in zip(*some, strict=True)]
    head = "".join(_cell(title, "left" if title == "task" else "right", "th") for title in columns)
    rows = "".join(f"<tr>{''.join(row)}</tr>\n" for row in zip(*columns.values(), strict=True))
    settings = ", ".join(f"{name}={value!r}" for name, value in balancer._settings().items())
    return (
        '<div style="max-height:40em;overflow:auto">\n'
        '<table style="border:0;border-collapse:collapse;width:auto;font-variant-numeric:tabular-nums">\n'
        f'<caption style="text-align:left">{escape(f"{type(balancer).__name__}({settings})")}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>"
    )


def _cell(content: str, side: str = "right", tag: str = "td") -> str:
    return f'<{tag} style="border:0;padding:2px 8px;text-align:{side}">{content}</{tag}>'


def _number(value: float) -> str:
    return _cell("" if isnan(value) else f"{value:.4g}")


def _bar(share: float) -> str:
    """A bar of a ``share`` of the width."""
    percent = 100 * max(share, 0.0) if isfinite(share) else 0.0
    return (
        f'<div style="width:{_WIDTH}px;background:{_GROUND}">'
        f'<div style="width:{percent:.1f}%;height:0.8em;background:{_BAR}"></div></div>'
    )


def _curve(values: Sequence[float]) -> str:
    """A curve between its lowest and its highest value, which it says where the mouse rests on it."""
    finite = [value for value in values if isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    scale = (_HEIGHT - 4) / (max(high - low, 0.02 * abs(high)) or 1.0)  # what hardly moves looks like it
    step, middle = _WIDTH / max(len(values) - 1, 1), (low + high) / 2
    points = [
        f"{step * i:.1f},{_HEIGHT / 2 + scale * (middle - value):.1f}"
        for i, value in enumerate(values)
        if isfinite(value)
    ]
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" style="vertical-align:middle">'
        f"<title>{low:.4g} to {high:.4g}</title>"
        f'<polyline points="{" ".join(points)}" fill="none" stroke="currentColor" stroke-width="1.5"/></svg>'
    )
