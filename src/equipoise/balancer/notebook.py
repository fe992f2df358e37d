"""A balancer as a notebook shows it: a table of its tasks."""

from __future__ import annotations

from html import escape
from math import isnan, nan
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from equipoise.balancer.controls import Controls


def table(balancer: Controls) -> str:
    """The tasks in HTML that needs nothing else: weights, and gradient norms and losses of the last step where known."""
    columns, known = {"weight": [nan] * len(balancer.tasks)}, {}
    if not balancer.weights.is_meta:
        columns["weight"], known = balancer.weights.tolist(), balancer.scalars()
    for title, name in {"gradient norm": "gradient_norm", "loss": "loss"}.items():
        numbers = [known.get(f"{name}/{task}", nan) for task in balancer.tasks]
        if not all(map(isnan, numbers)):
            columns[title] = numbers
    rows = ["<tr>" + "".join(f"<th>{title}</th>" for title in ("task", *columns)) + "</tr>"]
    for task, *values in zip(balancer.tasks, *columns.values(), strict=True):
        cells = "".join("<td></td>" if isnan(value) else f"<td>{value:.4g}</td>" for value in values)
        rows.append(f"<tr><th>{escape(task)}</th>{cells}</tr>")
    caption = escape(f"{type(balancer).__name__}({balancer._settings()})")
    return "\n".join(["<table>", f"<caption>{caption}</caption>", *rows, "</table>"])
