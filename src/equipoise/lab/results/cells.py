"""The cells of a comparison's table: a mean over seeds, and its paired difference from the reference."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from equipoise.lab.record import MetricInfo, Record, TaskInfo
from equipoise.lab.results.selection import diverged_at, last, selected
from equipoise.lab.results.statistics import Estimate, estimate, paired_difference

Verdict = Literal["better", "worse"]
Part = Literal["task", "summary", "run"]
Quantity = Callable[[Record, int], float]
"""A number of one run at one of its evaluations, given by its index."""
Values = Mapping[int, float]
"""A number of every run of a method, by seed."""
UNDEFINED = Estimate(math.nan, math.nan, 0)


@dataclass(frozen=True)
class Cell:
    """One method's entry in a row.

    Attributes:
        value: Mean and interval over the method's seeds, where each run is read.
        difference: Mean and interval of the paired difference from the reference method; None for the reference itself, and
            where there is none to take.
        p_value: That of the paired t-test, corrected by Holm's method for all methods; see `rows.summarise`.
        verdict: The side of the difference, where it is marked.
        last: ``value`` at the last step.
        last_difference: ``difference`` at the last step.
        withheld: The reason why a difference that would be marked is not.
        diverged: Number of the method's runs that diverged. The value then is NaN, never a mean over the others.
        note: A remark on the value, for instance the task that it belongs to.
        text: Words in the place of a value.
    """

    value: Estimate = UNDEFINED
    difference: Estimate | None = None
    p_value: float = math.nan
    verdict: Verdict | None = None
    last: Estimate | None = None
    last_difference: Estimate | None = None
    withheld: str = ""
    diverged: int = 0
    note: str = ""
    text: str = ""


@dataclass(frozen=True)
class Row:
    """One quantity for every method.

    Attributes:
        label: The quantity's name.
        unit: The metric or the unit.
        higher_is_better: The direction; None for a quantity that has none.
        part: Whether it is that of a task, a summary of all tasks, or a fact about the runs.
        cells: One cell per method, in the order of ``Comparison.runs``.
        relative: Whether the value is itself a change against the reference.
    """

    label: str
    unit: str
    higher_is_better: bool | None
    part: Part
    cells: tuple[Cell, ...]
    relative: bool = False

    @property
    def is_task(self) -> bool:
        """Whether the row is a task rather than a summary of all tasks or a fact about the runs."""
        return self.part == "task"


def at_last_step(row: Row) -> Row:
    """The row at the last step, without marks."""
    cells = tuple(
        cell if cell.last is None else Cell(cell.last, cell.last_difference, diverged=cell.diverged, text=cell.text)
        for cell in row.cells
    )
    return replace(row, label=f"{row.label}, at the last step", cells=cells)


def metrics_of(task: TaskInfo) -> dict[str, MetricInfo]:
    """All metrics of a task by name; that of its main one is empty."""
    return {"": task.metric, **task.more_metrics}


def metric_of(task: str, name: str = "") -> Quantity:
    """The test metric of a task: the main one, or a further one by its name."""

    def quantity(record: Record, at: int) -> float:
        series = record.test.more_metrics[task][name] if name else record.test.metrics[task]
        return float(series[at])

    return quantity


def relative_loss_of(task: str) -> Quantity:
    """``L/L(0)`` of a task on the test split; NaN if L(0) is not positive."""

    def quantity(record: Record, at: int) -> float:
        losses = record.test.losses[task]
        return float(losses[at] / losses[0]) if losses[0] > 0 else math.nan

    return quantity


def read(runs: Mapping[int, Record], quantities: Sequence[Quantity], at: Callable[[Record], int]) -> list[Values]:
    """Every quantity of each run by seed; NaN for a run that diverged, even if it was sound where it is read."""
    places = {seed: at(run) if diverged_at(run) is None else None for seed, run in runs.items()}
    return [
        {seed: math.nan if (place := places[seed]) is None else quantity(run, place) for seed, run in runs.items()}
        for quantity in quantities
    ]


@dataclass(frozen=True)
class Readings:
    """The values of some quantities.

    Attributes:
        selected: Where each run is read.
        last: At the last step.
    """

    selected: Sequence[Values]
    last: Sequence[Values]

    def one(self, number: int) -> Readings:
        """Those of one quantity."""
        return Readings([self.selected[number]], [self.last[number]])


def readings(runs: Mapping[int, Record], quantities: Sequence[Quantity]) -> Readings:
    """The quantities of a method's runs."""
    return Readings(read(runs, quantities, selected), read(runs, quantities, last))


def compared(ours: Readings, theirs: Readings | None, higher_is_better: bool) -> Cell:
    """The cell of the mean over some quantities, and of its paired difference; not yet marked.

    Args:
        ours: The method's values of every quantity.
        theirs: Those of the method that it is compared with.
        higher_is_better: The direction.
    """
    value, at_last = (estimate([*_mean(values).values()]) for values in (ours.selected, ours.last))
    if theirs is None:
        return Cell(value, last=at_last)
    difference = paired_difference(_mean(ours.selected), _mean(theirs.selected))
    last_difference = paired_difference(_mean(ours.last), _mean(theirs.last))
    singles = [paired_difference(*pair) for pair in zip(ours.selected, theirs.selected, strict=True)]
    return Cell(
        value,
        difference,
        difference.p_value,
        _side(difference, higher_is_better),
        at_last,
        last_difference,
        _reason(difference, last_difference, singles),
    )


def _mean(values: Sequence[Values]) -> dict[int, float]:
    """The mean over the quantities, of the seeds that all of them have."""
    common = [seed for seed in values[0] if all(seed in each for each in values)]
    return {seed: statistics.fmean(each[seed] for each in values) for seed in common}


def _side(difference: Estimate, higher_is_better: bool) -> Verdict:
    return "better" if (difference.mean > 0) == higher_is_better else "worse"


TURNED = "the last step turns it around"
HIDES = "it hides a task that goes the other way"


def _reason(difference: Estimate, last_difference: Estimate, singles: Sequence[Estimate]) -> str:
    """Why the mean difference must not be marked, if so."""
    if not difference.mean * last_difference.mean > 0:
        return TURNED
    sign = math.copysign(1, difference.mean)
    means = [sign * single.mean for single in singles]
    opposed = any(single.excludes_zero and mean < 0 for single, mean in zip(singles, means, strict=True))
    hangs_on_one = len(means) > 1 and sum(means) - max(means) <= 0
    return HIDES if opposed or hangs_on_one else ""
