"""Losses and metrics of all tasks on all splits, in the course of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from equipoise.lab.problem import Problem, Split, Splits, Task
from equipoise.lab.record import Evaluation

_BATCH = 500


class Evaluations:
    """Losses and metrics of a model at some steps.

    Args:
        model: The model; it is in training mode outside `take`.
        problem: Its tasks have the losses and metrics.
        splits: The splits. The training split is evaluated on no more samples than the test split has.

    Attributes:
        steps: The steps at which the model was evaluated.
    """

    def __init__(self, model: nn.Module, problem: Problem, splits: Splits) -> None:
        self.steps: list[int] = []
        self._model, self._tasks = model, problem.tasks
        train = thinned(splits.train, len(splits.test))
        self._splits = {"train": train, "validation": splits.validation, "test": splits.test}
        self._found: dict[tuple[str, str], list[_Found]] = {
            (split, task.name): [] for split in self._splits for task in self._tasks
        }

    def take(self, step: int) -> None:
        """Evaluate the model as it is after ``step`` steps."""
        self.steps.append(step)
        for name, split in self._splits.items():
            outputs = _outputs(self._model, split.inputs)
            for task in self._tasks:
                self._found[name, task.name].append(_evaluate(task, *labelled(split, task.name, outputs[task.name])))

    def of(self, split: str) -> Evaluation:
        """The losses and metrics on one split."""
        found = {task.name: self._found[split, task.name] for task in self._tasks}
        return Evaluation(
            losses={task: tuple(one.loss for one in some) for task, some in found.items()},
            metrics={task: tuple(one.metric for one in some) for task, some in found.items()},
            more_metrics={
                task.name: {
                    name: tuple(one.more_metrics[name] for one in found[task.name]) for name in task.more_metrics
                }
                for task in self._tasks
                if task.more_metrics
            },
        )


@dataclass(frozen=True)
class _Found:
    """Loss and metrics of one task on one split at one step."""

    loss: float
    metric: float
    more_metrics: dict[str, float]


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
def _outputs(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    model.eval()
    parts = [model(part) for part in torch.split(inputs, _BATCH)]
    model.train()
    return {task: torch.cat([part[task] for part in parts]) for task in parts[0]}


@torch.no_grad()
def _evaluate(task: Task, outputs: Tensor, targets: Tensor) -> _Found:
    """Loss and metrics over a whole split. Metrics refuse outputs that are not finite: they are worth NaN."""
    loss = task.loss(outputs, targets).item()
    builders = {"": task.metric, **task.more_metrics}
    if not outputs.isfinite().all():
        values = dict.fromkeys(builders, math.nan)
    else:
        metrics = {name: build().to(outputs.device) for name, build in builders.items()}
        for metric in metrics.values():
            metric.update(outputs, targets)
        values = {name: float(metric.compute()) for name, metric in metrics.items()}
    return _Found(loss, values.pop(""), values)
