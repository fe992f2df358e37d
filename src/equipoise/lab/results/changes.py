"""Relative changes of the metrics against another method, or against the training of single tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from equipoise.lab.record import MetricInfo, Record
from equipoise.lab.results.cells import Cell, Readings, Row, Values, compared, metric_of, metrics_of, read
from equipoise.lab.results.comparison import Comparison
from equipoise.lab.results.selection import diverged_at, last, selected
from equipoise.lab.results.statistics import estimate

Metric = tuple[str, str]
"""A task, and the name of one of its metrics; empty for its main one."""
Base = Callable[[str], Mapping[int, Record]]
"""The runs, by seed, that a task's metrics are compared with."""
_Found = tuple[Mapping[Metric, Values], Mapping[Metric, Values]]
"""The changes of a method: where each run is read, and at the last step."""


def change_rows(comparison: Comparison) -> list[Row]:
    """The mean change of all tasks, of each group, and that of the worst task; and ``delta_m`` where it can be had."""
    reference = comparison.runs[comparison.reference]
    rows = Changes(comparison, lambda task: reference, relative=True).rows(f"change against {comparison.reference}")
    if set(comparison.single_task) == {task.name for task in comparison.tasks}:
        alone = Changes(comparison, comparison.single_task.__getitem__)
        rows += alone.rows("delta_m, change against single-task training")
    return rows


def named(metric: Metric) -> str:
    """A metric by its task, and by its own name where it is not the main one."""
    task, name = metric
    return f"{task}, {name}" if name else task


@dataclass(frozen=True)
class Changes:
    """The changes of all methods against some runs.

    Attributes:
        comparison: The runs.
        base: The runs that a task's metrics are compared with.
        relative: Whether these are those of the reference method, which then has no change of its own.
    """

    comparison: Comparison
    base: Base
    relative: bool = False

    @cached_property
    def metrics(self) -> list[Metric]:
        """Every metric of every task."""
        return list(self._directions)

    def of(self, method: str, at: Callable[[Record], int] = selected) -> dict[Metric, dict[int, float]]:
        """The change of every metric in %, positive is worse: one value per seed that both have.

        It is NaN where the base is not above 0 (a coefficient of determination can be): the sign would turn around.
        """
        quantities = [metric_of(*metric) for metric in self.metrics]
        ours = dict(zip(self.metrics, read(self.comparison.runs[method], quantities, at), strict=True))
        bases = {task: self.base(task) for task, _ in self.metrics}
        distinct = {
            number: dict(zip(self.metrics, read(runs, quantities, at), strict=True))
            for number, runs in {id(runs): runs for runs in bases.values()}.items()
        }
        found = {}
        for metric, info in self._directions.items():
            theirs = distinct[id(bases[metric[0]])][metric]
            sign = -100 if info.higher_is_better else 100
            found[metric] = {
                seed: sign * (value - theirs[seed]) / theirs[seed] if theirs[seed] > 0 else math.nan
                for seed, value in sorted(ours[metric].items())
                if seed in theirs
            }
        return found

    @cached_property
    def _directions(self) -> dict[Metric, MetricInfo]:
        return {(task.name, name): info for task in self.comparison.tasks for name, info in metrics_of(task).items()}

    def rows(self, label: str) -> list[Row]:
        """A row for all tasks, one for each group, and one for the worst task."""
        methods = list(self.comparison.runs)
        found = {method: (self.of(method), self.of(method, last)) for method in methods}
        parts = {label: [task.name for task in self.comparison.tasks]}
        parts |= {f"{label}, group {path}": list(tasks) for path, tasks in self.comparison.groups.items()}
        rows = []
        for name, tasks in parts.items():
            metrics = [metric for metric in self.metrics if metric[0] in tasks]
            cells = tuple(self._mean(found, method, metrics) for method in methods)
            rows.append(Row(name, "%", False, "summary", cells, self.relative))
        worst = tuple(self._worst(found, method) for method in methods)
        return [*rows, Row(f"{label}, worst task", "%", False, "summary", worst, self.relative)]

    def _mean(self, found: Mapping[str, _Found], method: str, metrics: Sequence[Metric]) -> Cell:
        if self.relative and method == self.comparison.reference:
            return Cell(text="reference")
        ours = _readings(found[method], metrics)
        if not all(ours.selected):
            return Cell(text="no common seed")
        theirs = None
        if self.relative:  # the change is the difference: that of the reference from itself is 0
            theirs = Readings(*([dict.fromkeys(each, 0.0) for each in some] for some in (ours.selected, ours.last)))
        elif method != self.comparison.reference:
            theirs = _readings(found[self.comparison.reference], metrics)
        cell = compared(ours, theirs, higher_is_better=False)
        if unsound := self.comparison.diverged[method]:
            return replace(cell, diverged=unsound)
        return replace(cell, text=self._lack(found[method], metrics)) if math.isnan(cell.value.mean) else cell

    def _lack(self, found: _Found, metrics: Sequence[Metric]) -> str:
        """The reason why a mean is not defined."""
        lacking = next(metric for metric in metrics if not all(map(math.isfinite, found[0][metric].values())))
        runs = self.base(lacking[0])
        if any(diverged_at(run) is not None for run in runs.values()):
            return "none: a run of the base diverged"
        (base,) = read(runs, [metric_of(*lacking)], selected)
        is_low = any(base[seed] <= 0 for seed in found[0][lacking])
        return (
            f"none: {f'the base of {named(lacking)} is not above 0' if is_low else f'{named(lacking)} is not finite'}"
        )

    def _worst(self, found: Mapping[str, _Found], method: str) -> Cell:
        """The metric whose mean change is worst. It is never marked, being chosen after looking."""
        whole = self._mean(found, method, self.metrics)
        if whole.text or whole.diverged:
            return Cell(text=whole.text, diverged=whole.diverged)
        at_selected, at_last = found[method]
        estimates = {metric: estimate([*at_selected[metric].values()]) for metric in self.metrics}
        worst = max(estimates, key=lambda metric: estimates[metric].mean)
        return Cell(estimates[worst], last=estimate([*at_last[worst].values()]), note=named(worst))


def _readings(found: _Found, metrics: Sequence[Metric]) -> Readings:
    return Readings(*([some[metric] for metric in metrics] for some in found))
