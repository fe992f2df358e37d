"""The quantities by which the answers compare methods."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from equipoise.lab.results.cells import (
    Cell,
    Quantity,
    Readings,
    compared,
    metric_of,
    metrics_of,
    readings,
    relative_loss_of,
)
from equipoise.lab.results.changes import Changes
from equipoise.lab.results.comparison import Comparison
from equipoise.lab.results.selection import last


@dataclass(frozen=True)
class Measure:
    """A quantity of a run by which methods are compared.

    Attributes:
        name: The quantity in words.
        margin: Two methods are level if the whole interval of their difference is smaller, or that of `change` where given.
        cell: The value of a method on a problem, and its paired difference from a reference.
        unit: The unit of a measure whose value itself is a change against the reference, with a space before it.
        higher_is_better: The direction.
        shown: What is shown of a difference; of a logarithmic one the change in %.
        change: The same quantity as a change in %, if the margin is one of it.
    """

    name: str
    margin: float
    cell: Callable[[Comparison, str, str], Cell]
    unit: str = ""
    higher_is_better: bool = False
    shown: Callable[[float], float] = float
    change: Measure | None = None

    def mean(self, comparison: Comparison, method: str) -> float:
        """The mean over a method's runs; NaN if one diverged."""
        return self.cell(comparison, method, comparison.reference).value.mean


def _mean(comparison: Comparison, method: str, reference: str, quantities: Sequence[Quantity], higher: bool) -> Cell:
    ours, theirs = (readings(comparison.runs[label], quantities) for label in (method, reference))
    return compared(ours, theirs, higher)


def _judged(comparison: Comparison) -> list[Quantity]:
    """L/L(0) of every task, or the error of the task by which the problem is judged."""
    if task := comparison.records[0].judged_by:
        return [metric_of(task)]
    return [relative_loss_of(task.name) for task in comparison.tasks]


def _loss(comparison: Comparison, method: str, reference: str) -> Cell:
    return _mean(comparison, method, reference, _judged(comparison), higher=False)


def _against_nothing(ours: Readings) -> Cell:
    nothing = Readings(*([dict.fromkeys(each, 0.0) for each in some] for some in (ours.selected, ours.last)))
    return compared(ours, nothing, higher_is_better=False)


def _metrics_change(comparison: Comparison, method: str, reference: str) -> Cell:
    changes = Changes(comparison, lambda task: comparison.runs[reference], relative=True)
    found, at_last = changes.of(method), changes.of(method, last)
    return _against_nothing(Readings(*([some[metric] for metric in changes.metrics] for some in (found, at_last))))


def _log_ratio(one: float, other: float) -> float:
    return 100 * math.log(one / other) if one > 0 and other > 0 else math.nan


def _in_percent(log_ratio: float) -> float:
    """The change in % of a ratio whose logarithm is given, times 100."""
    return 100 * math.expm1(log_ratio / 100)


def _ratio(comparison: Comparison, method: str, reference: str, quantities: Sequence[Quantity]) -> Cell:
    """The logarithm of the ratio of two sums, times 100, with its interval.

    The test is that of the difference of the sums, so that a change and a difference come to one verdict.
    """
    ours, theirs = (readings(comparison.runs[label], quantities) for label in (method, reference))
    parts = []
    for mine, base in ((ours.selected, theirs.selected), (ours.last, theirs.last)):
        seeds = mine[0].keys() & base[0].keys()
        sums = {seed: (sum(each[seed] for each in mine), sum(each[seed] for each in base)) for seed in sorted(seeds)}
        parts.append([{seed: _log_ratio(one, other) for seed, (one, other) in sums.items()}])
    plain = _mean(comparison, method, reference, quantities, higher=False)
    return replace(_against_nothing(Readings(*parts)), p_value=plain.p_value, withheld=plain.withheld)


def _loss_change(comparison: Comparison, method: str, reference: str) -> Cell:
    return _ratio(comparison, method, reference, _judged(comparison))


def losses(comparison: Comparison, method: str) -> dict[int, float]:
    """The task-normalised test loss of every run of a method, by seed; or the error by which the problem is judged."""
    quantities = _judged(comparison)
    found = readings(comparison.runs[method], quantities).selected
    return {seed: sum(each[seed] for each in found) / len(found) for seed in found[0]}


LOSS_CHANGE = Measure("change of the task-normalised test loss", 2.0, _loss_change, " %", shown=_in_percent)
"""The change of `LOSS` in %, its mean the geometric one: half as much and twice as much cancel. It has the same test."""
LOSS = Measure("task-normalised test loss", 2.0, _loss, change=LOSS_CHANGE)
"""The mean of L/L(0) over the tasks, or the error of the task by which the problem is judged."""
METRICS_CHANGE = Measure("change of the test metrics", 2.0, _metrics_change, " %")
"""The mean change of all test metrics in %; positive is worse."""


def mean_metric(name: str, title: str, margin: float, *, higher_is_better: bool) -> Measure:
    """The mean of a test metric over the tasks.

    Args:
        name: The further metric's name; empty for the main one.
        title: The metric in words.
        margin: Half the width of what counts as level.
        higher_is_better: The direction.
    """

    def cell(comparison: Comparison, method: str, reference: str) -> Cell:
        tasks = [task.name for task in comparison.tasks if name in metrics_of(task)]
        return _mean(comparison, method, reference, [metric_of(task, name) for task in tasks], higher_is_better)

    return Measure(title, margin, cell, higher_is_better=higher_is_better)


def _sum_change(comparison: Comparison, method: str, reference: str) -> Cell:
    return _ratio(comparison, method, reference, [_loss_of(task.name) for task in comparison.tasks])


def _loss_of(task: str) -> Quantity:
    return lambda record, at: float(record.test.losses[task][at])


def _on_training(task: str) -> Quantity:
    return lambda record, at: float(record.train.losses[task][at] / record.train.losses[task][0])


def _training(comparison: Comparison, method: str, reference: str) -> Cell:
    return _mean(comparison, method, reference, [_on_training(task.name) for task in comparison.tasks], higher=False)


def _gap(comparison: Comparison, method: str, reference: str) -> Cell:
    def gap_of(task: str) -> Quantity:
        return lambda record, at: relative_loss_of(task)(record, at) - _on_training(task)(record, at)

    return _mean(comparison, method, reference, [gap_of(task.name) for task in comparison.tasks], higher=False)


SUM_CHANGE = Measure("change of the sum of the test losses", 2.0, _sum_change, " %", shown=_in_percent)
"""The change of the sum of the losses as they are, in %: the large tasks decide it."""
TRAINING = Measure("task-normalised training loss", 0.02, _training)
"""The mean of L/L(0) over the tasks on the training data, where the run is read."""
GAP = Measure("task-normalised test loss less that on the training data", 0.02, _gap)
"""How much larger the mean of L/L(0) is on test than on the training data: overfitting."""
