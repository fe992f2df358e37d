"""The step at which a run is read, and whether it can be read at all.

The test split is read at one evaluation of each run, chosen on the validation split by a criterion fixed beforehand: the
smallest task-normalised loss ``mean_i L_i / L_i(0)``, or the smallest error of the task by which the problem is judged. The
last evaluation is read beside it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from equipoise.lab.record import Evaluation, Record

EARLY = 0.2
"""A run that is read before this part of its steps is flagged."""
CONVERGED = 0.01
"""A run has converged if its criterion fell by less than this part of itself ..."""
CONVERGED_OVER = 0.2
"""... over this last part of its steps."""


def relative_losses(evaluation: Evaluation) -> dict[str, NDArray[np.float64]]:
    """``L_i / L_i(0)`` of every task, where ``L_i(0)`` is the loss before training.

    Returns:
        By task, one value per evaluation, shape ``(E,)``; NaN if the loss before training is not positive, because the
        ratio then has no meaning.
    """
    found = {}
    for task, series in evaluation.losses.items():
        losses = np.asarray(series, dtype=float)
        found[task] = losses / losses[0] if losses[0] > 0 else np.full(len(losses), math.nan)
    return found


def normalised_loss(evaluation: Evaluation) -> NDArray[np.float64]:
    """Task-normalised loss ``mean_i L_i / L_i(0)``.

    Returns:
        One value per evaluation, shape ``(E,)``; NaN throughout if a loss before training is not positive.
    """
    return np.asarray(np.mean(list(relative_losses(evaluation).values()), axis=0))


def judged(record: Record, evaluation: Evaluation) -> NDArray[np.float64]:
    """The task-normalised loss of a run's evaluation ``(E,)``, or the error of the task by which the problem is judged."""
    if record.judged_by:
        return np.asarray(evaluation.metrics[record.judged_by], dtype=float)
    return normalised_loss(evaluation)


def measure(record: Record, split: str) -> str:
    """The name of the quantity that `judged` reads on a split."""
    error = {task.name: task.metric.name for task in record.tasks}.get(record.judged_by)
    return f"{split} {error} of {record.judged_by}" if error else f"task-normalised {split} loss"


def criterion(record: Record) -> NDArray[np.float64]:
    """The quantity `judged` on the validation split ``(E,)``; of a run that trains a single task, this task's relative loss."""
    if record.spec.method == "single_task":
        return relative_losses(record.validation)[record.spec.method_settings["task"]]
    return judged(record, record.validation)


def selected(record: Record) -> int:
    """Index of the evaluation at which the test split is read.

    It is the one with the smallest value of the `criterion`, or the last one where that is not defined.
    """
    values = criterion(record)
    return int(np.nanargmin(values)) if np.isfinite(values).any() else len(values) - 1


def last(record: Record) -> int:
    """Index of the last evaluation."""
    return len(record.evaluated_at) - 1


def read_at(record: Record) -> int:
    """The step at which the test split is read."""
    return record.evaluated_at[selected(record)]


def read_early(record: Record) -> bool:
    """Whether the run is read before a fifth of its steps: later steps did not improve it."""
    return read_at(record) < EARLY * record.spec.steps


def converged(record: Record) -> bool | None:
    """Whether the smallest value of the `criterion` fell by less than 1 % over the last 20 % of the steps.

    None where that is not defined, or where the run was not evaluated in both parts.
    """
    values, steps = criterion(record), np.asarray(record.evaluated_at)
    before = values[steps <= (1 - CONVERGED_OVER) * record.spec.steps]
    if len(before) == len(values) or not (np.isfinite(before).any() and np.isfinite(values).all()):
        return None
    return bool(np.min(values) > (1 - CONVERGED) * np.nanmin(before))


def diverged_at(record: Record) -> int | None:
    """The step at which a run diverged: that of its record, or the first evaluated one at which a loss was not finite.

    None for a sound run.
    """
    if record.diverged is not None:
        return record.diverged.step
    losses = [list(split.losses.values()) for split in (record.train, record.validation, record.test)]
    unsound = ~np.isfinite(np.asarray(losses, dtype=float)).all(axis=(0, 1))
    return record.evaluated_at[int(unsound.argmax())] if unsound.any() else None


def divergence(record: Record) -> str:
    """The step and the cause of a run's divergence, in words; empty for a sound run."""
    if record.diverged is not None:
        return f"{record.diverged.cause} at step {record.diverged.step}"
    step = diverged_at(record)
    return "" if step is None else f"a loss was not finite at step {step}"
