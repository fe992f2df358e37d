"""The rows of a comparison's table: measurements, differences from the reference, and marks."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from equipoise.lab.record import MetricInfo, Record
from equipoise.lab.results.cells import (
    Cell,
    Part,
    Quantity,
    Readings,
    Row,
    compared,
    metric_of,
    metrics_of,
    readings,
    relative_loss_of,
)
from equipoise.lab.results.changes import change_rows
from equipoise.lab.results.comparison import Comparison
from equipoise.lab.results.selection import converged, diverged_at, read_at, read_early
from equipoise.lab.results.statistics import CONFIDENCE, estimate, holm


def summarise(comparison: Comparison) -> list[Row]:
    """The rows of the comparison's table: first every task's test metrics, then summaries, then facts about the runs.

    The summary rows are the mean of the metrics (where all tasks share one), the task-normalised test loss, the mean change
    of all metrics against the reference method in % (positive is worse), of all tasks and of each group, and that of the
    worst task. Where there are runs of single tasks, ``delta_m`` is the mean change against them.

    A difference is marked where three things hold. Its paired t-test is significant at 5 % after Holm's correction for all
    methods: of a summary, and of the error by which a problem is judged, for those of the row alone, so that the mark does
    not depend on what else is shown; of the tasks, for those of all tasks. At the last step the mean difference has the same
    sign. And a mean over tasks hides none of them: no single task differs the other way by more than its own interval, and
    the sign does not hang on any one task.

    References:
        Navon et al. 2022, "Multi-Task Learning as a Bargaining Game", the definition of ``delta_m``, in which every metric
        weighs the same.
    """
    tasks = comparison.tasks
    metrics = [(task.name, name, info) for task in tasks for name, info in metrics_of(task).items()]
    found = _readings(comparison, [metric_of(task, name) for task, name, _ in metrics])
    rows = []
    for number, (task, name, info) in enumerate(metrics):
        of_one = {method: some.one(number) for method, some in found.items()}
        rows.append(_row(comparison, task, replace(info, name=name or info.name), "task", of_one))
    if len(tasks) > 1 and len({one.metric for one in tasks}) == 1:
        main = _readings(comparison, [metric_of(one.name) for one in tasks])
        rows.append(_row(comparison, "mean of the tasks", tasks[0].metric, "summary", main))
    ratio = MetricInfo("mean L/L(0)", higher_is_better=False)
    relative = _readings(comparison, [relative_loss_of(one.name) for one in tasks])
    rows.append(_row(comparison, "task-normalised test loss", ratio, "summary", relative))
    rows += change_rows(comparison)
    by_error = {(comparison.records[0].judged_by, task.metric.name) for task in tasks}
    alone = [row.part == "summary" or (row.label, row.unit) in by_error for row in rows]
    of_tasks = iter(_marked([row for row, apart in zip(rows, alone, strict=True) if not apart]))
    marked = [_marked([row])[0] if apart else next(of_tasks) for row, apart in zip(rows, alone, strict=True)]
    return [*marked, *_run_rows(comparison)]


def _readings(comparison: Comparison, quantities: Sequence[Quantity]) -> dict[str, Readings]:
    return {method: readings(runs, quantities) for method, runs in comparison.runs.items()}


def _row(comparison: Comparison, label: str, info: MetricInfo, part: Part, found: Mapping[str, Readings]) -> Row:
    """A row of the mean of the readings of each method."""
    cells = []
    for method, unsound in comparison.diverged.items():
        against = found[comparison.reference] if method != comparison.reference else None
        cell = compared(found[method], against, info.higher_is_better)
        cells.append(replace(cell, diverged=unsound))
    return Row(label, info.name, info.higher_is_better, part, tuple(cells))


def _marked(rows: Sequence[Row]) -> list[Row]:
    """Rows that are corrected together, with marks where they are earned."""
    corrected = iter(holm([cell.p_value for row in rows for cell in row.cells]))
    return [replace(row, cells=tuple(_decided(cell, next(corrected)) for cell in row.cells)) for row in rows]


def _decided(cell: Cell, p_value: float) -> Cell:
    significant = p_value < 1 - CONFIDENCE
    return replace(
        cell,
        p_value=p_value,
        verdict=cell.verdict if significant and not cell.withheld else None,
        withheld=cell.withheld if significant else "",
    )


def _run_rows(comparison: Comparison) -> list[Row]:
    """Where the runs are read, whether they have converged, and the time that they take."""
    reads, ends, times = [], [], []
    for runs in comparison.runs.values():
        records = list(runs.values())
        sound = [run for run in records if diverged_at(run) is None]
        reads.append(Cell(text=_range([read_at(run) for run in sound]) if sound else "none", note=_early(sound)))
        ends.append(Cell(text=_converged(records)))
        if any(run.spec.vectorized for run in records):
            times.append(Cell(text="trained with others"))
        else:
            times.append(Cell(estimate([1000 * run.train_seconds / run.evaluated_at[-1] for run in records])))
    return [
        Row("read at step", "median over seeds", None, "run", tuple(reads)),
        Row("converged", "runs", None, "run", tuple(ends)),
        Row("time per training step", "ms", False, "run", tuple(times)),
    ]


def _range(steps: Sequence[int]) -> str:
    low, middle, high = min(steps), statistics.median(steps), max(steps)
    return f"{middle:g}" if low == high else f"{middle:g} ({low} to {high})"


def _early(records: Sequence[Record]) -> str:
    early = sum(map(read_early, records))
    return f"{early} early" if early else ""


def _converged(records: Sequence[Record]) -> str:
    found = [converged(record) for record in records]
    return f"{sum(each is True for each in found)} of {len(found)}" if None not in found else "not known"
