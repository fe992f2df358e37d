"""Weights, gradient norms and losses over the steps, as a figure; needs ``equipoise[plot]``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, isfinite, log10
from numbers import Real
from typing import TYPE_CHECKING, Any

from equipoise.arguments import described

if TYPE_CHECKING:
    import plotly.graph_objects as go

_PANELS = {"weight": "weight", "gradient_norm": "gradient norm", "loss": "loss"}
_COLORS = (
    *("#2f7fc1", "#d1602a", "#2e9a55", "#a067c8", "#c94f6d"),
    *("#11918f", "#9a7b16", "#8d6e63", "#d05fb0", "#7c8794"),
)
"""All can be seen on white and on black."""
_DASHES = ("solid", "dash", "dot", "dashdot")
_TEXT, _GRID = "#7c8794", "rgba(128,128,128,0.25)"
Points = dict[str, tuple[list[float], list[float]]]
"""Steps and values by task."""


def plot(history: Sequence[Mapping[str, float]], steps: Sequence[float] | None = None) -> go.Figure:
    """Weights, gradient norms and losses over the steps: a panel for each, in which a task has the same colour.

    A quantity that no step has is left out. An axis is logarithmic where its values are positive and span more than
    100-fold. Where a task was absent, its line joins the steps before and after. With more than 40 tasks there is no legend,
    but hovering shows their names. In a notebook the figure shows itself; ``figure.write_html("weights.html")`` saves it.

    Args:
        history: The results of ``balancer.scalars()`` after each step, oldest first, such as ``balancer.history``. Entries
            other than ``weight/...``, ``gradient_norm/...`` or ``loss/...`` are not drawn.
        steps: The number of each of these steps; None: 1, 2, 3, ..., counted from the first in ``history``.

    Returns:
        A figure of plotly.

    Raises:
        TypeError: ``history`` is no sequence of dicts, or a value to be drawn or a step is no number.
        ValueError: There is nothing to be drawn, or there are not as many ``steps`` as there are in ``history``.
        ImportError: plotly is not installed.

    Example:
        >>> from equipoise import plot
        >>> figure = plot([{"weight/price": 1.0, "weight/risk": 1.0}, {"weight/price": 1.2, "weight/risk": 0.8}])
        >>> [line.name for line in figure.data], list(figure.data[0].y)
        (['price', 'risk'], [1.0, 1.2])
    """
    lines = _lines(history, steps)
    try:
        from plotly.subplots import make_subplots
    except ModuleNotFoundError as error:
        raise ImportError('equipoise.plot needs plotly: pip install "equipoise[plot]"') from error
    quantities = [name for name in _PANELS if name in lines]
    tasks = list(dict.fromkeys(task for quantity in quantities for task in lines[quantity]))
    figure = make_subplots(rows=len(quantities), shared_xaxes=True, vertical_spacing=0.05)
    seen: set[str] = set()
    for row, quantity in enumerate(quantities, 1):
        for task, (x, y) in lines[quantity].items():
            number = tasks.index(task)
            dash = _DASHES[number // len(_COLORS) % len(_DASHES)]
            figure.add_scatter(
                x=x,
                y=y,
                row=row,
                col=1,
                mode="lines" if len(x) > 1 else "markers",
                name=escape(task, quote=False),  # plotly reads tags
                legendgroup=str(number),
                showlegend=task not in seen,
                line={"color": _COLORS[number % len(_COLORS)], "dash": dash, "width": 1.5},
                hovertemplate="%{fullData.name}<br>step %{x}: %{y:.4g}<extra></extra>",
            )
            seen.add(task)
        figure.update_yaxes(title_text=_PANELS[quantity], row=row, **_scale(lines[quantity]))
    title = "step in the history" if steps is None else "step"
    axis = {"gridcolor": _GRID, "linecolor": _TEXT, "zeroline": False}
    figure.update_xaxes(axis).update_xaxes(title_text=title, row=len(quantities))
    figure.update_yaxes(axis, tickformat="~g")
    return figure.update_layout(
        template="none",
        height=200 * len(quantities) + 100,
        margin={"l": 70, "r": 15, "t": 20, "b": 45},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": _TEXT},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": _GRID, "activecolor": _TEXT},
        hovermode="closest",
        showlegend=len(tasks) <= len(_COLORS) * len(_DASHES),
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom"},
    )


def _lines(history: Any, steps: Any) -> dict[str, Points]:
    """The points of every line, by quantity."""
    if isinstance(history, str) or not isinstance(history, Sequence):
        raise TypeError(f"history must be a sequence of dicts, such as balancer.history; found {described(history)}")
    if len(history) == 0:
        raise ValueError("history must hold a step; found none. balancer.keep_history() has a balancer keep them")
    steps = range(1, len(history) + 1) if steps is None else steps
    if isinstance(steps, str) or not isinstance(steps, Sequence):
        raise TypeError(f"steps must be a sequence of numbers; found {described(steps)}")
    if len(steps) != len(history):
        raise ValueError(f"steps must be as many as there are in history, {len(history)}; found {len(steps)}")
    lines: dict[str, Points] = {}
    for i, (step, scalars) in enumerate(zip(steps, history, strict=True)):
        if not isinstance(scalars, Mapping):
            raise TypeError(f"history[{i}] must be a dict by name; found {described(scalars)}")
        for name, value in scalars.items():
            quantity, _, task = str(name).partition("/")
            if quantity in _PANELS and task:
                x, y = lines.setdefault(quantity, {}).setdefault(task, ([], []))
                x.append(_number(f"steps[{i}]", step))
                y.append(_number(f"history[{i}][{name!r}]", value))
    if not lines:
        found = ", ".join(map(repr, list(history[0])[:5])) or "none"
        raise ValueError(f"history must hold names such as 'weight/task', as balancer.scalars() has; found {found}")
    return lines


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number; found {described(value)}")
    return float(value)


def _scale(points: Points) -> dict[str, Any]:
    """The scale of an axis: logarithmic for positive values that span more than 100-fold."""
    values = [value for _, y in points.values() for value in y if isfinite(value)]
    if not values or not 0 < 100 * min(values) < max(values):
        return {"type": "linear"}
    return {"type": "log", "dtick": ceil(log10(max(values) / min(values)) / 5)}  # a tick at decades, of which some fit
