"""The balancer's log over a run, by task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from equipoise.balancer import Balancer
from equipoise.hierarchy import Hierarchy
from equipoise.lab.problem import Task
from equipoise.lab.record import Curves, Series

_QUANTITIES = ("losses", "weights", "gradient_norms", "targets", "training_rates")
_COUNTS = ("floor_hits", "cap_hits")


class Logs:
    """The log of a balancer at some steps.

    In a tree of balancers, the weights are those that the losses have in the total; all else comes from the balancer right
    above a task.

    Args:
        balancer: The balancer.
        tasks: The problem's tasks, in whose order everything is kept.
    """

    def __init__(self, balancer: Balancer | Hierarchy, tasks: Sequence[Task]) -> None:
        self._balancer, self._tasks = balancer, [task.name for task in tasks]
        self._rows: dict[int, dict[str, list[float]]] = {}

    def take(self, step: int, losses: Mapping[str, Tensor | None]) -> None:
        """Keep the log of a step, and its losses."""
        known = {task: math.nan if loss is None else loss.item() for task, loss in losses.items()}
        row = _by_task(self._balancer) | {"losses": known}
        self._rows[step] = {
            name: [short(row[name].get(task, math.nan)) for task in self._tasks] for name in _QUANTITIES if name in row
        }

    @property
    def curves(self) -> Curves:
        """Everything that was kept: NaN where a quantity was not measured, none of it if it never was."""
        return Curves(step=tuple(self._rows), **{name: self._series(name) for name in _QUANTITIES})

    @property
    def skipped_steps(self) -> int:
        """Steps that a balancer left out because something was not finite."""
        return max(int(log["skipped_steps"]) for _, log in _each(self._balancer))

    def counts(self) -> dict[str, dict[str, int]]:
        """By quantity and task, at how many steps a weight was held; zeros for a method that has no such thing."""
        found = _by_task(self._balancer)
        return {name: {task: int(found.get(name, {}).get(task, 0)) for task in self._tasks} for name in _COUNTS}

    def state_dict(self) -> dict[str, Any]:
        """Everything that was kept."""
        return {"rows": self._rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._rows = state["rows"]

    def _series(self, name: str) -> Series:
        if not any(name in row for row in self._rows.values()):
            return {}
        absent = [math.nan] * len(self._tasks)
        rows = [row.get(name, absent) for row in self._rows.values()]
        return {task: tuple(column) for task, column in zip(self._tasks, zip(*rows, strict=True), strict=True)}


def _each(balancer: Balancer | Hierarchy) -> list[tuple[Sequence[str], dict[str, Tensor]]]:
    """Tasks and log of every balancer."""
    balancers = balancer.balancers.values() if isinstance(balancer, Hierarchy) else [balancer]
    return [(one.tasks, one.log()) for one in balancers]


def _by_task(balancer: Balancer | Hierarchy) -> dict[str, dict[str, float]]:
    """The last step's log by quantity and task."""
    found: dict[str, dict[str, float]] = {}
    for tasks, log in _each(balancer):
        for name in (*_QUANTITIES, *_COUNTS):
            if name in log:
                found.setdefault(name, {}).update(zip(tasks, log[name].tolist(), strict=True))
    if isinstance(balancer, Hierarchy):
        found["weights"] = dict(zip(balancer.tasks, balancer.log()["weights"].tolist(), strict=True))
    return found


def short(value: float) -> float:
    """Nine digits: all that single precision has, in half the space of a record."""
    return float(f"{value:.9g}")
