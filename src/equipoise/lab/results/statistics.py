"""The statistics of a comparison: means over seeds, intervals, and paired differences from a reference method.

The test split is read at one evaluation of each run, chosen on the validation split by a criterion fixed beforehand:
the smallest task-normalised loss ``mean_i L_i / L_i(0)``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from equipoise.lab.record import Evaluation, MetricInfo, Record, RunSpec, TaskInfo
from equipoise.lab.settings import written

CONFIDENCE = 0.95
"""Coverage of every interval."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its uncertainty.

    Attributes:
        mean: The mean of the values; NaN if one of them is not finite, or there are none.
        half_width: Half the width of the 95 % t-interval of the mean; NaN for fewer than two values.
        n: Number of values.
    """

    mean: float
    half_width: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval and 0 lies outside it."""
        return abs(self.mean) > self.half_width


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % t-interval of independent values.

    Example:
        >>> estimate([2.0, 2.0])
        Estimate(mean=2.0, half_width=0.0, n=2)
    """
    n = len(values)
    if n == 0 or not np.isfinite(values).all():
        return Estimate(math.nan, math.nan, n)
    if n == 1:
        return Estimate(values[0], math.nan, n)
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))
    # The standard library rounds once, at the end, so the order of the seeds does not show in the result.
    return Estimate(statistics.fmean(values), quantile * statistics.stdev(values) / math.sqrt(n), n)


def paired_difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Estimate:
    """Mean and interval of ``values - reference`` over the seeds that both have."""
    return estimate([values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys())])


def diverged_at(record: Record) -> int | None:
    """The step at which the run diverged: that of its record, or the first evaluated one at which a loss was not finite."""
    if record.diverged is not None:
        return record.diverged.step
    losses = [list(split.losses.values()) for split in (record.train, record.validation, record.test)]
    unsound = ~np.isfinite(np.asarray(losses, dtype=float)).all(axis=(0, 1))
    return record.evaluated_at[int(unsound.argmax())] if unsound.any() else None


def normalised_loss(evaluation: Evaluation) -> NDArray[np.float64]:
    """Task-normalised loss ``mean_i L_i / L_i(0)``, where ``L_i(0)`` is the loss before training.

    Returns:
        One value per evaluation, shape ``(E,)``; NaN throughout if a loss before training is not positive, because the
        ratio then has no meaning.
    """
    losses = np.asarray(list(evaluation.losses.values()), dtype=float)
    initial = losses[:, :1]
    if not (initial > 0).all():
        return np.full(losses.shape[1], math.nan)
    return np.asarray((losses / initial).mean(axis=0))


def selected(record: Record) -> int:
    """Index of the evaluation at which the test split is read.

    It is the one with the smallest task-normalised validation loss, or the last one where that is not defined.
    """
    criterion = normalised_loss(record.validation)
    return int(np.nanargmin(criterion)) if np.isfinite(criterion).any() else len(criterion) - 1


def method_label(spec: RunSpec) -> str:
    """The method with the settings that differ from its defaults, as it is written on the command line."""
    return written(spec.method, spec.method_settings)


@dataclass(frozen=True)
class Comparison:
    """Runs that differ in method and seed, and in nothing else.

    Attributes:
        spec: The settings that the runs have in common. Its method, method settings and seed are those of the first run.
        tasks: The tasks, in order.
        runs: The runs of each method by seed. The reference method comes first.
        reference: Label of the method that the others are compared with.
        groups: The tasks of every group by its path.
    """

    spec: RunSpec
    tasks: tuple[TaskInfo, ...]
    runs: Mapping[str, Mapping[int, Record]]
    reference: str
    groups: Mapping[str, tuple[str, ...]]

    @property
    def records(self) -> list[Record]:
        """All runs, method by method."""
        return [record for runs in self.runs.values() for record in runs.values()]

    @property
    def seeds(self) -> list[int]:
        """Every seed that occurs."""
        return sorted({seed for runs in self.runs.values() for seed in runs})


def group(records: Iterable[Record], reference: str = "equal") -> list[Comparison]:
    """Sorts runs into comparisons, so that different settings, budgets or code are never averaged together.

    Args:
        records: Runs, in any order.
        reference: Method (or label) that the others are compared with. Where a comparison lacks it, its first method
            takes its place.

    Raises:
        ValueError: If the same run occurs twice, or runs that should agree on their tasks or steps do not.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        common = replace(record.spec, method="", method_settings={}, seed=0)
        groups.setdefault(repr(_canonical(common.__dict__)), []).append(record)
    return [_comparison(runs, reference) for runs in groups.values()]


def _canonical(value: Any) -> Any:
    """The value with mappings as sorted pairs and sequences as tuples, so that equal contents have equal ``repr``."""
    if isinstance(value, Mapping):
        return tuple(sorted((key, _canonical(item)) for key, item in value.items()))
    return tuple(map(_canonical, value)) if isinstance(value, list | tuple) else value


def _comparison(records: Sequence[Record], reference: str) -> Comparison:
    first = next((record for record in records if record.diverged is None), records[0])
    expected = tuple(first.evaluated_at)
    runs: dict[str, dict[int, Record]] = {}
    for record in records:
        label, seed = method_label(record.spec), record.spec.seed
        if seed in runs.setdefault(label, {}):
            raise ValueError(f"{record.spec.problem}: two records of {label} with seed {seed}, wanted one.")
        if tuple(record.tasks) != tuple(first.tasks):
            raise ValueError(f"{record.spec.problem}: {label} with seed {seed} has other tasks than the first record.")
        if _groups(record) != _groups(first):
            raise ValueError(f"{record.spec.problem}: {label} with seed {seed} has other groups than the first record.")
        # A run that diverged ends early; it is shown as such, and none of its numbers is read.
        if record.diverged is None and tuple(record.evaluated_at) != expected:
            raise ValueError(f"{record.spec.problem}: {label} with seed {seed} was evaluated at other steps.")
        runs[label][seed] = record
    names = {method_label(record.spec): record.spec.method for record in records}
    chosen = next((label for label, name in names.items() if reference in (label, name)), method_label(first.spec))
    ordered = {label: dict(sorted(runs[label].items())) for label in sorted(runs, key=lambda label: label != chosen)}
    return Comparison(first.spec, tuple(first.tasks), ordered, chosen, _groups(first))


def _groups(record: Record) -> dict[str, tuple[str, ...]]:
    return {path: tuple(tasks) for path, tasks in record.groups.items()}


Verdict = Literal["better", "worse"]


@dataclass(frozen=True)
class Cell:
    """One method's entry in a row.

    Attributes:
        value: Mean and interval over the method's seeds.
        difference: Mean and interval of the paired difference from the reference method; None for the reference itself.
        verdict: The verdict of the paired interval; None where it contains 0 or does not exist.
        diverged: Number of the method's runs that diverged. The value then is NaN, never a mean over the others.
        note: A remark on the value, for instance the task that it belongs to.
    """

    value: Estimate
    difference: Estimate | None
    verdict: Verdict | None
    diverged: int = 0
    note: str = ""


_UNDEFINED = Estimate(math.nan, math.nan, 0)


@dataclass(frozen=True)
class Row:
    """One quantity for every method.

    Attributes:
        label: The quantity's name.
        unit: The metric or the unit.
        higher_is_better: The direction.
        is_task: Whether the row is a task rather than a summary of all tasks.
        cells: One cell per method, in the order of ``Comparison.runs``.
    """

    label: str
    unit: str
    higher_is_better: bool
    is_task: bool
    cells: tuple[Cell, ...]


def summarise(comparison: Comparison) -> list[Row]:
    """The rows of the comparison's table: first every task's test metric, then summaries.

    The summary rows are the mean of the metrics (where all tasks share one), the task-normalised test loss, the mean
    relative change ``delta_m``, of all tasks and of each group's, and the worst task's relative change (in %, positive is
    worse, against the *reference method*, for there is no single-task run), and the milliseconds per training step.

    References:
        Navon et al. 2022, "Multi-Task Learning as a Bargaining Game", the definition of ``delta_m``.
    """
    tasks = comparison.tasks
    rows = [_measured_row(comparison, task.name, task.metric, _metric_of(task), is_task=True) for task in tasks]
    if len(tasks) > 1 and len({task.metric for task in tasks}) == 1:
        rows.append(_measured_row(comparison, "mean of the tasks", tasks[0].metric, _mean_metric, is_task=False))
    loss, ratio = "task-normalised test loss", MetricInfo("mean L/L(0)", higher_is_better=False)
    rows.append(_measured_row(comparison, loss, ratio, lambda record: _at(record, normalised_loss), is_task=False))
    worsts, means, *by_group = zip(*(_change_cells(comparison, method) for method in comparison.runs), strict=True)
    unit = f"% against {comparison.reference}"
    rows.append(Row("delta_m, mean change of the tasks", unit, False, False, means))
    for path, cells in zip(comparison.groups, by_group, strict=True):
        rows.append(Row(f"delta_m of the group {path}", unit, False, False, cells))
    rows.append(Row("change of the worst task", unit, False, False, worsts))
    times = tuple(
        Cell(estimate([1000 * record.train_seconds / record.spec.steps for record in runs.values()]), None, None)
        for runs in comparison.runs.values()
    )
    return [*rows, Row("time per training step", "ms", False, False, times)]


def _metric_of(task: TaskInfo) -> Callable[[Record], float]:
    return lambda record: float(record.test.metrics[task.name][selected(record)])


def _mean_metric(record: Record) -> float:
    return statistics.fmean(_metric_of(task)(record) for task in record.tasks)


def _at(record: Record, quantity: Callable[[Evaluation], NDArray[np.float64]]) -> float:
    return float(quantity(record.test)[selected(record)])


def _read(runs: Mapping[int, Record], quantity: Callable[[Record], float]) -> dict[int, float]:
    """The quantity of each run by seed; NaN for a run that diverged, even if it was sound at the selected step."""
    return {seed: quantity(run) if diverged_at(run) is None else math.nan for seed, run in runs.items()}


def _diverged(runs: Mapping[int, Record]) -> int:
    return sum(diverged_at(run) is not None for run in runs.values())


def _verdict(difference: Estimate, higher_is_better: bool) -> Verdict | None:
    if not difference.excludes_zero:
        return None
    return "better" if (difference.mean > 0) == higher_is_better else "worse"


def _measured_row(
    comparison: Comparison, label: str, info: MetricInfo, quantity: Callable[[Record], float], *, is_task: bool
) -> Row:
    reference = _read(comparison.runs[comparison.reference], quantity)
    cells = []
    for method, runs in comparison.runs.items():
        values = _read(runs, quantity)
        difference = None if method == comparison.reference else paired_difference(values, reference)
        verdict = _verdict(difference, info.higher_is_better) if difference else None
        cells.append(Cell(estimate(list(values.values())), difference, verdict, _diverged(runs)))
    return Row(label, info.name, info.higher_is_better, is_task, tuple(cells))


def _relative_changes(comparison: Comparison, method: str) -> dict[str, list[float]]:
    """Each task's change against the reference, in %, positive is worse: one value per seed that both methods have."""
    reference = comparison.runs[comparison.reference]
    seeds = sorted(comparison.runs[method].keys() & reference.keys())
    changes = {}
    for task in comparison.tasks:
        ours, theirs = (_read(runs, _metric_of(task)) for runs in (comparison.runs[method], reference))
        sign = -1 if task.metric.higher_is_better else 1
        # A base that is zero or negative (a coefficient of determination can be) turns the change's sign around.
        changes[task.name] = [
            100 * sign * (ours[seed] - theirs[seed]) / theirs[seed] if theirs[seed] > 0 else math.nan for seed in seeds
        ]
    return changes


def _change_cells(comparison: Comparison, method: str) -> tuple[Cell, ...]:
    """The change of the task whose mean change is worst, then the mean change of the tasks: of all, and of each group."""
    if method == comparison.reference:
        return (Cell(_UNDEFINED, None, None),) * (2 + len(comparison.groups))
    changes = _relative_changes(comparison, method)
    diverged = _diverged(comparison.runs[method])
    means = []
    for tasks in (tuple(changes), *comparison.groups.values()):
        per_seed = zip(*(changes[task] for task in tasks), strict=True)
        mean = estimate([statistics.fmean(values) for values in per_seed])
        means.append(Cell(mean, mean, _verdict(mean, higher_is_better=False), diverged))
    estimates = {task: estimate(values) for task, values in changes.items()}
    if any(math.isnan(change.mean) for change in estimates.values()):
        worst, name = _UNDEFINED, ""
    else:
        name = max(estimates, key=lambda task: estimates[task].mean)
        worst = estimates[name]
    # No verdict on the worst task: it is the worst of several, chosen after looking.
    return (Cell(worst, worst, None, diverged, name), *means)
