"""One HTML file that shows comparisons: tables, curves, and where the numbers come from. It needs no network."""

from __future__ import annotations

import base64
import hashlib
import html
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from numpy.typing import NDArray
from plotly.offline import get_plotlyjs

from equipoise.lab.record import Record
from equipoise.lab.results.cells import Row
from equipoise.lab.results.comparison import Comparison, group
from equipoise.lab.results.files import write_whole
from equipoise.lab.results.flags import flags
from equipoise.lab.results.format import format_cell, format_unit
from equipoise.lab.results.provenance import format_spec, legend, provenance
from equipoise.lab.results.rows import summarise

_ASSETS = Path(__file__).parent / "assets"
_TEXT, _QUIET, _GRID = "#1f2328", "#8a9099", "#e8eaed"
_TASK_COLORS = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"),
    *("#0c3b5c", "#a34a00", "#135213", "#7a1010", "#4b2a73", "#45241e", "#99357b", "#3b3b3b", "#6b6c0e", "#0a6b76"),
)
_METHOD_COLORS = ("#4d4d4d", "#1f6fd1", "#d1495b", "#1a936f", "#8e44ad", "#e08e0b", "#00838f", "#795548")
_BAND_LIMIT = 6
"""With more lines than this in a panel, bands hide the lines."""

_AXIS = {
    "gridcolor": _GRID,
    "linecolor": _QUIET,
    "showline": True,
    "tickcolor": _QUIET,
    "ticks": "outside",
    "ticklen": 3,
    "title": {"standoff": 4},
    "zeroline": False,
}
_TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "system-ui, sans-serif", "size": 11, "color": _TEXT},
        "hoverlabel": {"bgcolor": "white", "bordercolor": _QUIET, "font": {"color": _TEXT}},
        "hovermode": "closest",
        "margin": {"l": 58, "r": 12, "t": 6, "b": 36},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "showlegend": False,
        "xaxis": {**_AXIS, "nticks": 6, "title": {"text": "training step", "standoff": 4}},
        "yaxis": {**_AXIS, "nticks": 6, "tickformat": "~g"},
    }
)


@dataclass(frozen=True)
class _Line:
    """A quantity over the steps, for every seed.

    Attributes:
        name: The task or the method that it belongs to.
        key: Its place in the legend.
        step: The steps ``(N,)``.
        values: The quantity ``(S, N)``, one row per seed.
    """

    name: str
    key: int
    color: str
    step: NDArray[np.int64]
    values: NDArray[np.float64]
    dash: str = "solid"


@dataclass(frozen=True)
class _Panel:
    """One small figure; ``figure`` is its JSON, or None where nothing was measured."""

    title: str
    figure: Markup | None


def write_report(records: Iterable[Record], path: Path, reference: str = "equal") -> None:
    """Write the report on runs: one self-contained HTML file, which opens anywhere and loads nothing.

    Args:
        records: Runs of any number of problems; `group` sorts them into comparisons.
        path: The file. Its folder is made if need be.
        reference: The method that the others are compared with.

    Raises:
        ValueError: There are no records, or they contradict each other.
    """
    comparisons = group(records, reference)
    if not comparisons:
        raise ValueError("report: wanted at least one record, found none")
    scripts = [get_plotlyjs(), (_ASSETS / "report.js").read_text(encoding="utf-8")]
    environment = Environment(loader=FileSystemLoader(_ASSETS), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.get_template("report.html").render(
        problems=[_problem(comparison) for comparison in comparisons],
        runs=sum(len(comparison.records) for comparison in comparisons),
        scripts=[Markup(script) for script in scripts],
        # The page's policy lets these two scripts run and nothing else, with any names in the records.
        hashes=[base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts],
    )
    write_whole(path, page)


def _problem(comparison: Comparison) -> dict[str, Any]:
    """The part of the template for one comparison."""
    methods, tasks = list(comparison.runs), [task.name for task in comparison.tasks]
    rows = summarise(comparison)
    marked = sum(cell.difference is not None for row in rows if row.is_task for cell in row.cells)
    return {
        "name": comparison.spec.problem,
        "steps": comparison.spec.steps,
        "settings": format_spec(comparison.spec),
        "seeds": len(comparison.seeds),
        "reference": comparison.reference,
        "methods": [
            {"name": method, "color": color, "n": len(comparison.runs[method])}
            for method, color in zip(methods, _colors(methods, _METHOD_COLORS), strict=True)
        ],
        "tasks": [
            {"name": task, "color": color} for task, color in zip(tasks, _colors(tasks, _TASK_COLORS), strict=True)
        ],
        "rows": [_row(row) for row in rows],
        "legend": " ".join(legend(comparison, rows)),
        "comparisons": marked,
        "flags": flags(comparison),
        "balancing": _balancing(comparison),
        "losses": _per_task(comparison, _losses),
        "metrics": _per_task(comparison, _metrics),
        "bands": {"tasks": len(tasks) <= _BAND_LIMIT, "methods": len(methods) <= _BAND_LIMIT},
        "provenance": provenance(comparison),
    }


def _row(row: Row) -> dict[str, Any]:
    cells = [
        {
            "text": format_cell(replace(cell, note=""), relative=row.relative),
            "note": cell.note,
            "verdict": cell.verdict,
            "diverged": cell.diverged,
        }
        for cell in row.cells
    ]
    return {"label": row.label, "unit": format_unit(row), "is_task": row.is_task, "cells": cells}


def _colors(names: Sequence[str], palette: Sequence[str]) -> list[str]:
    """A colour for each name; beyond the palette they repeat."""
    return [palette[i % len(palette)] for i in range(len(names))]


def _balancing(comparison: Comparison) -> list[list[_Panel]]:
    """A row of panels per method: losses, weights, gradient norms with targets, training rates; a line per task.

    The panels of one quantity have the same axis for all methods.
    """
    quantities = (
        ("training loss L of the batch", "L (the task's unit)", "losses", None),
        ("weight w", "w (no unit)", "weights", None),
        ("gradient norm of w L; target dashed", "loss per unit of W", "gradient_norms", "targets"),
        ("relative inverse training rate r", "r (no unit)", "training_rates", None),
    )
    columns = []
    for title, axis, quantity, dashed in quantities:
        lines = [
            _task_lines(comparison, method, quantity, "solid")
            + (_task_lines(comparison, method, dashed, "dash") if dashed else [])
            for method in comparison.runs
        ]
        scale = _scale([line for some in lines for line in some])
        level = 1.0 if quantity in ("weights", "training_rates") else None
        columns.append([_panel(title, axis, some, scale, level=level) for some in lines])
    return [list(row) for row in zip(*columns, strict=True)]


def _task_lines(comparison: Comparison, method: str, quantity: str, dash: str) -> list[_Line]:
    runs = list(comparison.runs[method].values())
    names = [task.name for task in comparison.tasks]
    lines = []
    for key, (name, color) in enumerate(zip(names, _colors(names, _TASK_COLORS), strict=True)):
        series = [getattr(run.curves, quantity).get(name, [math.nan] * len(run.curves.step)) for run in runs]
        lines.append(_line(name, key, color, runs[0].curves.step, series, dash))
    return [line for line in lines if line.values.size]


def _per_task(comparison: Comparison, lines_of: Callable[[Comparison, str], tuple[str, list[_Line]]]) -> list[_Panel]:
    """A panel per task; a line per method."""
    panels = []
    for task in comparison.tasks:
        axis, lines = lines_of(comparison, task.name)
        panels.append(_panel(task.name, axis, lines, _scale(lines)))
    return panels


def _losses(comparison: Comparison, task: str) -> tuple[str, list[_Line]]:
    train = _method_lines(comparison, lambda record: record.train.losses[task], "solid")
    return "L (the task's unit)", train + _method_lines(comparison, lambda record: record.test.losses[task], "dash")


def _metrics(comparison: Comparison, task: str) -> tuple[str, list[_Line]]:
    info = next(info for info in comparison.tasks if info.name == task).metric
    axis = f"{_literal(info.name)} {'↑' if info.higher_is_better else '↓'}"
    return axis, _method_lines(comparison, lambda record: record.test.metrics[task], "solid")


def _method_lines(comparison: Comparison, series: Callable[[Record], Sequence[float]], dash: str) -> list[_Line]:
    colors = _colors(list(comparison.runs), _METHOD_COLORS)
    lines = []
    for key, ((method, runs), color) in enumerate(zip(comparison.runs.items(), colors, strict=True)):
        records = list(runs.values())
        lines.append(_line(method, key, color, records[0].evaluated_at, [series(record) for record in records], dash))
    return lines


def _line(name: str, key: int, color: str, step: Sequence[int], series: Sequence[Sequence[float]], dash: str) -> _Line:
    """The line without the steps at which no seed has a number, such as those without a measured gradient norm."""
    values = np.asarray(series, dtype=float)
    values[~np.isfinite(values)] = math.nan
    measured = ~np.isnan(values).all(axis=0)
    return _Line(name, key, color, np.asarray(step)[measured], values[:, measured], dash)


def _scale(lines: Sequence[_Line]) -> tuple[str, list[float] | None]:
    """Type and range of the axis that all lines share: logarithmic if they are positive and span more than a factor 20."""
    values = np.concatenate([np.empty(0), *(line.values.ravel() for line in lines)])
    values = values[np.isfinite(values)]
    if not values.size:
        return "linear", None
    low, high = float(values.min()), float(values.max())
    kind = "log" if low > 0 and high > 20 * low else "linear"
    if kind == "log":
        low, high = math.log10(low), math.log10(high)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return kind, [low - margin, high + margin]


def _panel(
    title: str, axis: str, lines: Sequence[_Line], scale: tuple[str, list[float] | None], *, level: float | None = None
) -> _Panel:
    """A figure of the lines' means over seeds, with a band from the smallest to the largest seed where it is legible."""
    if not lines:
        return _Panel(title, None)
    figure = go.Figure(layout={"template": _TEMPLATE})
    banded = len({line.key for line in lines}) <= _BAND_LIMIT
    for line in lines:
        common = {"x": line.step, "legendgroup": str(line.key), "mode": "lines"}
        if banded and len(line.values) > 1:
            edge = {**common, "line": {"width": 0}, "hoverinfo": "skip"}
            figure.add_scatter(y=line.values.min(axis=0), **edge)
            figure.add_scatter(y=line.values.max(axis=0), fill="tonexty", fillcolor=_pale(line.color), **edge)
    for line in lines:
        figure.add_scatter(
            x=line.step,
            y=line.values.mean(axis=0),
            mode="lines",
            name=_literal(line.name),
            legendgroup=str(line.key),
            line={"color": line.color, "dash": line.dash, "width": 1.5 if banded else 1.2},
            hovertemplate="%{fullData.name}<br>step %{x:,d}: %{y:.4g}<extra></extra>",
        )
    if level is not None:
        figure.add_hline(level, line={"color": _QUIET, "width": 1}, layer="below")
    kind, limits = scale
    figure.update_yaxes(title_text=axis, type=kind, range=limits)
    if kind == "log" and limits and limits[1] - limits[0] < 6:
        figure.update_yaxes(dtick="D2" if limits[1] - limits[0] < 3 else 1)  # D2: at 1, 2 and 5 of every decade
    return _Panel(title, Markup(figure.to_json()))


def _pale(color: str) -> str:
    return f"rgba({int(color[1:3], 16)},{int(color[3:5], 16)},{int(color[5:7], 16)},0.12)"


def _literal(name: str) -> str:
    """A name as Plotly has to get it so that it shows as it is: Plotly reads a few tags and entities."""
    return html.escape(name, quote=False)
