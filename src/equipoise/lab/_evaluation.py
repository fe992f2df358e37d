"""Losses and metrics of all tasks on all splits, in the course of a run."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from equipoise.lab._problem import Problem, Split, Splits, Task
from equipoise.lab._record import Evaluation

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
        self._found: dict[tuple[str, str], list[tuple[float, float]]] = {
            (split, task.name): [] for split in self._splits for task in self._tasks
        }

    def take(self, step: int) -> None:
        """Evaluate the model as it is after ``step`` steps."""
        self.steps.append(step)
        for name, split in self._splits.items():
            outputs = _outputs(self._model, split.inputs)
            for task in self._tasks:
                self._found[name, task.name].append(_evaluate(task, outputs[task.name], split.targets[task.name]))

    def of(self, split: str) -> Evaluation:
        """The losses and metrics on one split."""
        columns = {task.name: tuple(zip(*self._found[split, task.name], strict=True)) for task in self._tasks}
        return Evaluation(
            losses={task: losses for task, (losses, _) in columns.items()},
            metrics={task: metrics for task, (_, metrics) in columns.items()},
        )


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
    return Split(split.inputs[rows], {task: targets[rows] for task, targets in split.targets.items()})


@torch.no_grad()
def _outputs(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    model.eval()
    parts = [model(part) for part in torch.split(inputs, _BATCH)]
    model.train()
    return {task: torch.cat([part[task] for part in parts]) for task in parts[0]}


@torch.no_grad()
def _evaluate(task: Task, outputs: Tensor, targets: Tensor) -> tuple[float, float]:
    """Loss and metric over a whole split. Metrics refuse outputs that are not finite: they are worth NaN."""
    loss = task.loss(outputs, targets).item()
    if not outputs.isfinite().all():
        return loss, math.nan
    metric = task.metric().to(outputs.device)
    metric.update(outputs, targets)
    return loss, float(metric.compute())
