"""Losses and metrics of all tasks on all splits, in the course of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from equipoise.lab.problem import Problem, Split, Splits, Task
from equipoise.lab.record import Evaluation, MetricInfo

_BATCH, _NUMBERS = 500, 2**21
"""The most samples, and the most numbers in their inputs, that the model reads at once."""


class Evaluations:
    """Losses and metrics of a model at some steps.

    Args:
        model: The model; it is in training mode outside `take`.
        problem: Its tasks have the losses and metrics.
        splits: The splits. The training split is evaluated on no more samples than the test split has, unless a task has no
            label among these.

    Attributes:
        steps: The steps at which the model was evaluated.
    """

    def __init__(self, model: nn.Module, problem: Problem, splits: Splits) -> None:
        self.steps: list[int] = []
        self._model, self._tasks = model, problem.tasks
        train = thinned(splits.train, len(splits.test))
        if not all(there.any() for there in train.labelled.values()):
            train = splits.train
        self._splits = {"train": train, "validation": splits.validation, "test": splits.test}
        device = splits.test.inputs.device
        # Built once, as that takes longer than an update does.
        self._metrics = {task.name: metrics_of(task, device) for task in self._tasks}
        self._found: dict[str, dict[str, list[list[float]]]] = {
            split: {task.name: [] for task in self._tasks} for split in self._splits
        }

    def take(self, step: int) -> None:
        """Evaluate the model as it is after ``step`` steps."""
        self.steps.append(step)
        for name, split in self._splits.items():
            outputs = _outputs(self._model, split.inputs)
            for task in self._tasks:
                try:
                    found = evaluate(task, *labelled(split, task.name, outputs[task.name]), self._metrics[task.name])
                except Exception as error:
                    raise ValueError(f"split {name!r}, task {task.name!r}: {type(error).__name__}: {error}") from error
                self._found[name][task.name].append(found)

    def last_losses(self, split: str) -> dict[str, float]:
        """The losses that were found last on one split."""
        return {task: rows[-1][0] for task, rows in self._found[split].items()}

    def of(self, split: str) -> Evaluation:
        """The losses and metrics on one split."""
        return evaluation(self._tasks, self._found[split])

    def state_dict(self) -> dict[str, Any]:
        """Everything that was found."""
        return {"steps": self.steps, "found": self._found}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.steps, self._found = state["steps"], state["found"]


def thinned(split: Split, samples: int) -> Split:
    """At most ``samples`` of a split, evenly spaced, as they may lie in some order."""
    if len(split) <= samples:
        return split
    return taken(split, torch.linspace(0, len(split) - 1, samples).long())


def taken(split: Split, rows: Tensor) -> Split:
    """Some samples of a split.

    Shape:
        ``rows`` is ``(B,)``, the samples' numbers.
    """
    rows = rows.to(split.inputs.device)
    return Split(
        split.inputs[rows],
        {task: targets[rows] for task, targets in split.targets.items()},
        {task: there[rows] for task, there in split.labelled.items()},
    )


def labelled(split: Split, task: str, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and targets of a task for the samples that have a label."""
    targets = split.targets[task]
    if task not in split.labelled:
        return outputs, targets
    there = split.labelled[task]
    return outputs[there], targets[there]


@torch.no_grad()
def evaluate(task: Task, outputs: Tensor, targets: Tensor, metrics: list[Metric]) -> list[float]:
    """Loss and metrics over a whole split. Metrics refuse outputs that are not finite: they are worth NaN.

    Args:
        task: The task.
        outputs: Those of the samples with a label.
        targets: Their targets.
        metrics: The task's metric and its further ones.

    Returns:
        The loss, then each metric.
    """
    loss = task.loss(outputs, targets).item()
    if not outputs.isfinite().all():
        return [loss] + [math.nan] * len(metrics)
    for metric in metrics:
        metric.reset()
        metric.update(outputs, targets)
    return [loss, *(float(metric.compute()) for metric in metrics)]


def evaluation(tasks: Sequence[Task], rows: Mapping[str, Sequence[Sequence[float]]]) -> Evaluation:
    """The results of `evaluate`, given by task as a row for each step."""
    columns = {task: list(zip(*found, strict=True)) for task, found in rows.items()}
    more = {task.name: dict(zip(task.more_metrics, columns[task.name][2:], strict=True)) for task in tasks}
    return Evaluation(
        losses={task: column[0] for task, column in columns.items()},
        metrics={task: column[1] for task, column in columns.items()},
        more_metrics={task: found for task, found in more.items() if found},
    )


def metrics_of(task: Task, device: torch.device) -> list[Metric]:
    """The task's metric and its further ones."""
    return [build().to(device) for build in (task.metric, *task.more_metrics.values())]


def metric_info(task: str, build_metric: Callable[[], Metric]) -> MetricInfo:
    """The facts about a metric of a task.

    Raises:
        ValueError: There is no metric of torchmetrics to build, or it does not say if higher is better.
    """
    try:
        metric = build_metric()
    except Exception as error:
        raise ValueError(f"task {task!r}: its metric cannot be built by {build_metric!r}: {error}") from error
    if not isinstance(metric, Metric):
        raise ValueError(f"task {task!r}: its metric must be one of torchmetrics; found {metric!r}")
    if metric.higher_is_better is None:
        raise ValueError(
            f"task {task!r}: its metric {type(metric).__name__} does not say if higher is better; derive a class from it "
            "that has higher_is_better = True, or False"
        )
    return MetricInfo(type(metric).__name__, metric.higher_is_better)


@torch.no_grad()
def _outputs(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    model.eval()
    parts = [model(part) for part in torch.split(inputs, max(1, min(_BATCH, _NUMBERS // inputs[0].numel())))]
    model.train()
    return {task: torch.cat([part[task] for part in parts]) for task in parts[0]}
