"""Warnings that a reader must know before the figures, in sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from equipoise.lab.record import Record
from equipoise.lab.results.cells import metric_of, metrics_of, read
from equipoise.lab.results.comparison import Comparison
from equipoise.lab.results.selection import converged, criterion, divergence, measure, read_early, selected


def flags(comparison: Comparison) -> list[str]:
    """Seeds without a partner, runs that diverged, were read early or have not converged, steps left out, weights held."""
    found = list(_unpaired(comparison))
    tasks = [task.name for task in comparison.tasks]
    alone = {f"single_task(task={task!r})": runs for task, runs in comparison.single_task.items()}
    if lacking := [task for task in tasks if comparison.single_task and task not in comparison.single_task]:
        found.append(
            f"There are runs of {', '.join(alone)}, but none of {', '.join(lacking)} alone: changes against single-task "
            "training are left out."
        )
    for method, runs in {**comparison.runs, **alone}.items():
        found += [f"{method}, seed {seed}: diverged; {why}." for seed, run in runs.items() if (why := divergence(run))]
        found += _unsettled(method, runs)
        found += _held(method, runs, tasks)
    for method, runs in comparison.runs.items():
        found += _undefined(method, runs)
    found += _meaningless(comparison)
    if unread := [record for record in comparison.records if not np.isfinite(criterion(record)).any()]:
        by_error = f"The {measure(unread[0], 'validation')} was not finite at any step"
        reason = by_error if unread[0].judged_by else "A validation loss before training was not positive"
        found.append(f"{reason}, so its run is read at the last evaluation.")
    return found


def _undefined(method: str, runs: Mapping[int, Record]) -> Iterator[str]:
    """Metrics that are not a number where sound runs are read."""
    for task in next(iter(runs.values())).tasks:
        for name, metric in metrics_of(task).items():
            (values,) = read(runs, [metric_of(task.name, name)], selected)
            if count := sum(not math.isfinite(value) and not divergence(runs[seed]) for seed, value in values.items()):
                yield f"{method}: {metric.name} of {task.name} is not finite where {count} of {len(runs)} runs are read."


def _meaningless(comparison: Comparison) -> Iterator[str]:
    """Areas under the ROC curve that torchmetrics gives as 0, for want of labels of both kinds."""
    runs = comparison.records
    for task in comparison.tasks:
        for name, metric in metrics_of(task).items():
            found = [run.test.more_metrics[task.name][name] if name else run.test.metrics[task.name] for run in runs]
            if "AUROC" in metric.name and not any(map(any, found)):
                yield f"{task.name}: {metric.name} is 0 throughout, as it is where all labels are of one kind; it says nothing."


def _unpaired(comparison: Comparison) -> Iterator[str]:
    """The methods whose seeds are not those of the reference, and over how many the differences are taken."""
    reference = comparison.runs[comparison.reference]
    for method, runs in comparison.runs.items():
        if runs.keys() != reference.keys():
            yield (
                f"{method}: values are means over its own {len(runs)} seeds, differences from {comparison.reference} over the "
                f"{len(runs.keys() & reference.keys())} that both have; {comparison.reference} has {len(reference)}."
            )
    for task, alone in comparison.single_task.items():
        if lacking := [seed for seed in comparison.seeds if seed not in alone]:
            yield (
                f"single_task(task={task!r}): no run with seed {', '.join(map(str, lacking))}; changes against single-task "
                "training are over the other seeds."
            )


def _unsettled(method: str, runs: Mapping[int, Record]) -> Iterator[str]:
    sound = [run for run in runs.values() if not divergence(run)]
    if early := [run for run in sound if read_early(run)]:
        worse = all(criterion(run)[-1] > np.nanmin(criterion(run)) for run in early)
        followed = "what followed made them worse" if worse else "what followed made them no better"
        yield f"{method}: {len(early)} of {len(runs)} runs are read before a fifth of their steps; {followed}."
    if falling := sum(converged(run) is False for run in sound):
        yield (
            f"{method}: {falling} of {len(runs)} runs have not converged: their smallest {measure(sound[0], 'validation')} "
            "fell by 1 % or more over the last 20 % of the steps."
        )


def _held(method: str, runs: Mapping[int, Record], tasks: list[str]) -> Iterator[str]:
    total = sum(record.evaluated_at[-1] for record in runs.values())
    if skipped := sum(record.skipped_steps for record in runs.values()):
        yield f"{method}: {skipped} of {total} steps were skipped because something was not finite."
    for bound in ("floor", "cap"):
        hits = {task: sum(getattr(record, f"{bound}_hits")[task] for record in runs.values()) for task in tasks}
        held = ", ".join(f"{task} {count} ({100 * count / total:.2g} %)" for task, count in hits.items() if count)
        if held:
            yield f"{method}: steps of {total} at which a weight was held at the {bound}: {held}."
