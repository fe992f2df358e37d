"""The figures of the report, as JSON for plotly: curves over the steps, and the trade-off between tasks."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup
from numpy.typing import NDArray

from equipoise.lab.printable import inert
from equipoise.lab.record import Record
from equipoise.lab.results.cells import metric_of, read, relative_loss_of
from equipoise.lab.results.comparison import Comparison
from equipoise.lab.results.palette import method_colors, task_colors
from equipoise.lab.results.selection import criterion, measure, selected

_TEXT, _GRID = "#7c8794", "rgba(128,128,128,0.25)"
"""Text and lines that can be seen on white and on black."""
BAND_LIMIT = 6
"""With more lines than this in a panel, bands hide the lines."""

_AXIS = {
    "gridcolor": _GRID,
    "linecolor": _TEXT,
    "showline": True,
    "tickcolor": _TEXT,
    "ticks": "outside",
    "ticklen": 3,
    "title": {"standoff": 4},
    "zeroline": False,
}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "system-ui, sans-serif", "size": 11, "color": _TEXT},
        "hoverlabel": {"bgcolor": "#f6f7f8", "bordercolor": _TEXT, "font": {"color": "#1f2328"}},
        "hovermode": "closest",
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "rgba(127,127,127,0.5)", "activecolor": _TEXT},
        "margin": {"l": 58, "r": 12, "t": 6, "b": 36},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
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
class Panel:
    """One small figure; ``drawn`` is None where nothing was measured."""

    title: str
    drawn: go.Figure | None

    @property
    def figure(self) -> Markup | None:
        """Its JSON."""
        return None if self.drawn is None else Markup(self.drawn.to_json())


def opening(comparison: Comparison) -> list[Panel]:
    """The fall of all losses together with the steps at which runs are read, and the trade-off between the tasks."""
    lines = _method_lines(comparison, lambda record: list(criterion(record)), "solid")
    first = comparison.records[0]
    unit = "error" if first.judged_by else "mean L/L(0)"
    whole = _panel(f"{measure(first, 'validation')}; dots where runs are read", unit, lines, _scale(lines))
    if whole.drawn is not None:
        whole = _with_dots(whole, comparison)
    return [whole, _trade_off(comparison) if len(comparison.tasks) == 2 else _by_task(comparison)]


def _with_dots(panel: Panel, comparison: Comparison) -> Panel:
    figure = go.Figure(panel.drawn)
    for key, (method, color) in enumerate(method_colors(comparison).items()):
        runs = list(comparison.runs[method].values())
        figure.add_scatter(
            x=[run.evaluated_at[selected(run)] for run in runs],
            y=[float(criterion(run)[selected(run)]) for run in runs],
            mode="markers",
            legendgroup=str(key),
            marker={"color": color, "size": 7, "line": {"color": "white", "width": 1}},
            hovertemplate=f"{_literal(method)}<br>read at step %{{x:,d}}<extra></extra>",
        )
    return Panel(panel.title, figure)


def _trade_off(comparison: Comparison) -> Panel:
    """Two tasks: the metric of one against that of the other, a small dot for every seed and a large one for the mean."""
    first, second = comparison.tasks
    figure = go.Figure(layout={"template": TEMPLATE})
    for key, (method, color) in enumerate(method_colors(comparison).items()):
        quantities = [metric_of(task.name) for task in (first, second)]
        x, y = (list(values.values()) for values in read(comparison.runs[method], quantities, selected))
        common = {"mode": "markers", "legendgroup": str(key), "hovertemplate": f"{_literal(method)}<extra></extra>"}
        figure.add_scatter(x=x, y=y, marker={"color": color, "size": 5, "opacity": 0.5}, **common)
        means = {"color": color, "size": 12, "symbol": "diamond"}
        figure.add_scatter(x=[np.mean(x)], y=[np.mean(y)], marker=means, name=_literal(method), **common)
    for axis, task in (("x", first), ("y", second)):
        arrow = "↑" if task.metric.higher_is_better else "↓"
        figure.update_layout({f"{axis}axis_title_text": f"{_literal(task.name)}: {_literal(task.metric.name)} {arrow}"})
    return Panel("trade-off between the tasks: seeds, and their mean", figure)


def _by_task(comparison: Comparison) -> Panel:
    """More tasks: how far the test loss of every task is from the reference's, a line per method."""
    figure = go.Figure(layout={"template": TEMPLATE})
    tasks = [task.name for task in comparison.tasks]
    means = {
        method: [
            float(np.mean(list(values.values())))
            for values in read(runs, [relative_loss_of(task) for task in tasks], selected)
        ]
        for method, runs in comparison.runs.items()
    }
    for key, (method, color) in enumerate(method_colors(comparison).items()):
        pairs = zip(means[method], means[comparison.reference], strict=True)
        figure.add_scatter(
            x=list(range(len(tasks))),
            y=[100 * (ours / theirs - 1) if theirs else math.nan for ours, theirs in pairs],
            text=[_literal(task) for task in tasks],
            mode="lines+markers",
            name=_literal(method),
            legendgroup=str(key),
            line={"color": color, "width": 1.2},
            marker={"size": 5},
            hovertemplate="%{fullData.name}<br>%{text}: %{y:.3g} %<extra></extra>",
        )
    few = len(tasks) <= 20
    labels = [_literal(task if len(task) <= 14 else f"{task[:13]}…") for task in tasks]
    places = {"tickvals": list(range(len(tasks))), "ticktext": labels, "automargin": True} if few else {}
    figure.update_xaxes(title_text="" if few else "number of the task", **places)
    figure.update_yaxes(title_text="change of the mean L/L(0), %")
    return Panel(f"test loss of every task against {inert(comparison.reference)}, where runs are read", figure)


def balancing(comparison: Comparison) -> list[list[Panel]]:
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
    steps = max((run.curves.step for run in runs), key=len)
    lines = []
    for key, (name, color) in enumerate(task_colors(comparison).items()):
        series = [getattr(run.curves, quantity).get(name, ()) for run in runs]
        lines.append(_line(name, key, color, steps, series, dash))
    return [line for line in lines if line.values.size]


def per_task(comparison: Comparison, lines_of: Callable[[Comparison, str], tuple[str, list[_Line]]]) -> list[Panel]:
    """A panel per task; a line per method."""
    panels = []
    for task in comparison.tasks:
        axis, lines = lines_of(comparison, task.name)
        panels.append(_panel(task.name, axis, lines, _scale(lines)))
    return panels


def losses(comparison: Comparison, task: str) -> tuple[str, list[_Line]]:
    """Training and test loss of a task: the title of the axis, and a line per method for each."""
    train = _method_lines(comparison, lambda record: record.train.losses[task], "solid")
    return "L (the task's unit)", train + _method_lines(comparison, lambda record: record.test.losses[task], "dash")


def metrics(comparison: Comparison, task: str) -> tuple[str, list[_Line]]:
    """Test metric of a task: the title of the axis, and a line per method."""
    info = next(info for info in comparison.tasks if info.name == task).metric
    axis = f"{_literal(info.name)} {'↑' if info.higher_is_better else '↓'}"
    return axis, _method_lines(comparison, lambda record: record.test.metrics[task], "solid")


def _method_lines(comparison: Comparison, series: Callable[[Record], Sequence[float]], dash: str) -> list[_Line]:
    lines = []
    for key, (method, color) in enumerate(method_colors(comparison).items()):
        records = list(comparison.runs[method].values())
        steps = max((record.evaluated_at for record in records), key=len)
        lines.append(_line(method, key, color, steps, [series(record) for record in records], dash))
    return lines


def _line(name: str, key: int, color: str, step: Sequence[int], series: Sequence[Sequence[float]], dash: str) -> _Line:
    """The line without the steps at which no seed has a number, such as those without a measured gradient norm.

    A run that was stopped early has none at the last steps.
    """
    values = np.full((len(series), len(step)), math.nan)
    for row, numbers in zip(values, series, strict=True):
        row[: len(numbers)] = numbers
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
) -> Panel:
    """A figure of the lines' means over seeds, with a band from the smallest to the largest seed where it is legible."""
    if not lines:
        return Panel(title, None)
    figure = go.Figure(layout={"template": TEMPLATE})
    banded = len({line.key for line in lines}) <= BAND_LIMIT
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
        figure.add_hline(level, line={"color": _TEXT, "width": 1}, layer="below")
    kind, limits = scale
    figure.update_yaxes(title_text=axis, type=kind, range=limits)
    if kind == "log" and limits and limits[1] - limits[0] < 6:
        figure.update_yaxes(dtick="D2" if limits[1] - limits[0] < 3 else 1)  # D2: at 1, 2 and 5 of every decade
    return Panel(title, figure)


def _pale(color: str) -> str:
    return f"rgba({int(color[1:3], 16)},{int(color[3:5], 16)},{int(color[5:7], 16)},0.12)"


def _literal(name: str) -> str:
    """A name as Plotly has to get it so that it shows as it is: Plotly reads a few tags and entities."""
    return html.escape(inert(name), quote=False)
