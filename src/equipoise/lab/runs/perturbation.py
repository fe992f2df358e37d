"""Perturbations of a problem: changes to its tasks that a method should stand."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torchmetrics import Metric

from equipoise.lab.groups import Groups
from equipoise.lab.problem import Problem, Split, Splits, Task
from equipoise.lab.settings import unknown


def perturbed(problem: Problem) -> Problem:
    """The problem with the changes that its field ``perturbation`` asks for; itself if there is none.

    A perturbation is written like a call, with the name of a task (``*`` for each of them) and a number where it needs one:

    - ``loss_times(f1, 1000)``: the loss of f1 times 1000.
    - ``dead(f1)``: the loss of f1 keeps its value, and its gradient is 0.
    - ``missing(f1, 0.9)``: 90 % of the training labels of f1, drawn at random, are missing.
    - ``duplicate(f1)``: a further task, ``f1_copy``, with the data of f1 and a head of its own.
    - ``noise(f1, 1.0)``: Gaussian noise on the training targets of a regression, in units of their standard deviation; for a
      classification, the share of the training labels that are put into random order.
    - ``standardised(f1)``: the loss of a regression sees targets less the mean of the training targets, over their standard
      deviation. Outputs are brought back to the unit of the targets for the metric.

    Metrics, validation and test data stay as they are, so that results can be compared with those of the problem as it was.

    Raises:
        ValueError: A perturbation or its task is unknown, or the number does not fit.
    """
    texts = (problem.perturbation,) if isinstance(problem.perturbation, str) else problem.perturbation
    changes = [change for text in texts for change in _read(text, problem.tasks)]
    if not changes:
        return problem

    # A subclass, so that the network and all else that the problem builds from its tasks has the changed ones.
    class Perturbed(type(problem)):  # type: ignore[misc]
        @property
        def tasks(self) -> tuple[Task, ...]:
            tasks = list(problem.tasks)
            for change in changes:
                i = [task.name for task in tasks].index(change.task)
                tasks[i : i + 1], further = [change.on_task(tasks[i])], change.further(tasks[i])
                tasks += further
            return tuple(tasks)

        @property
        def groups(self) -> Groups:
            groups: Groups = problem.groups
            for change in changes:
                groups = _with_copy(groups, change.task) if change.kind == "duplicate" else groups
            return groups

        def splits(self) -> Splits:
            splits: Splits = problem.splits()
            for change in changes:
                splits = change.on_splits(splits)
            return splits

    Perturbed.__name__ = type(problem).__name__
    return Perturbed(**{field.name: getattr(problem, field.name) for field in fields(problem)})


@dataclass(frozen=True)
class _Kind:
    """A kind of perturbation: the numbers that it takes, and whether it fits a classification."""

    wanted: str = "no number"
    fits: Callable[[float], bool] | None = None
    regression_only: bool = False


_KINDS = {
    "loss_times": _Kind("a positive, finite number", lambda number: 0 < number < math.inf),
    "dead": _Kind(),
    "missing": _Kind("a share from 0 to 1", lambda number: 0 <= number <= 1),
    "duplicate": _Kind(),
    "noise": _Kind("a finite number of at least 0", lambda number: 0 <= number < math.inf),
    "standardised": _Kind(regression_only=True),
}


class _Change:
    """One perturbation of one task."""

    def __init__(self, kind: str, task: Task, number: float) -> None:
        self.kind, self.task, self.number = kind, task.name, number
        self._regression = task.kind == "regression"
        self._unit = (0.0, 1.0)  # mean and standard deviation of the training targets, known when the data are

    def on_task(self, task: Task) -> Task:
        """The task with its changed loss and metrics."""
        if self.kind == "loss_times":
            return replace(task, loss=lambda outputs, targets: self.number * task.loss(outputs, targets))
        if self.kind == "dead":
            return replace(task, loss=lambda outputs, targets: task.loss(outputs, targets).detach() + 0 * outputs.sum())
        if self.kind == "standardised":
            more = {name: self._in_the_targets_unit(build) for name, build in task.more_metrics.items()}
            metric = self._in_the_targets_unit(task.metric)
            return replace(task, loss=self._standardised_loss(task), metric=metric, more_metrics=more)
        return task

    def further(self, task: Task) -> list[Task]:
        """The tasks that come in beside the task."""
        return [replace(task, name=_copy(task.name))] if self.kind == "duplicate" else []

    def on_splits(self, splits: Splits) -> Splits:
        """The splits with the changed labels of the task, the same at every call."""
        name, train = self.task, splits.train
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.kind} {name}".encode()))
        if self.kind == "duplicate":
            return Splits(*(_with_copied_data(s, name) for s in (splits.train, splits.validation, splits.test)))
        targets, rows = train.targets[name], _labelled_rows(train, name)
        if self.kind == "standardised":
            known = targets[rows].double()
            self._unit = (known.mean().item(), known.std().item() or 1.0)
        if self.kind == "missing":
            there = torch.zeros(len(train), dtype=torch.bool)
            left = max(1, round((1 - self.number) * len(rows)))
            there[rows[torch.randperm(len(rows), generator=generator)[:left]]] = True
            return replace(splits, train=replace(train, labelled={**train.labelled, name: there}))
        if self.kind == "noise":
            noisy = (self._noisy if self._regression else self._shuffled)(targets, rows, generator)
            return replace(splits, train=replace(train, targets={**train.targets, name: noisy}))
        return splits

    def _noisy(self, targets: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        size = self.number * targets[rows].std()
        return targets + size * torch.randn(targets.shape, generator=generator, dtype=targets.dtype)

    def _shuffled(self, targets: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        chosen = rows[torch.randperm(len(rows), generator=generator)[: round(self.number * len(rows))]]
        targets = targets.clone()
        targets[chosen] = targets[chosen[torch.randperm(len(chosen), generator=generator)]]
        return targets

    def _standardised_loss(self, task: Task) -> Callable[[Tensor, Tensor], Tensor]:
        def loss(outputs: Tensor, targets: Tensor) -> Tensor:
            mean, deviation = self._unit
            return task.loss(outputs, (targets - mean) / deviation)

        return loss

    def _in_the_targets_unit(self, build: Callable[[], Metric]) -> Callable[[], Metric]:
        def built() -> Metric:
            metric = build()
            update = metric.update

            def rescaled(outputs: Tensor, targets: Tensor) -> None:
                mean, deviation = self._unit
                update(outputs * deviation + mean, targets)

            metric.update = rescaled  # type: ignore[method-assign]
            return metric

        return built


def _read(text: str, tasks: Sequence[Task]) -> list[_Change]:
    """Read a perturbation, for one task or each of them.

    Raises:
        ValueError: It cannot be read; or its kind, its task or its number does not fit.
    """
    if not text.strip():
        return []
    match = re.fullmatch(r"\s*(\w+)\s*\((.*)\)\s*", text)
    if match is None:
        raise ValueError(f"perturbation: wanted one such as 'loss_times(f1, 1000)', found {text!r}")
    name, inside = match[1], match[2].strip()
    if name not in _KINDS:
        raise ValueError(unknown("perturbation", name, _KINDS))
    kind, known = _KINDS[name], {task.name: task for task in tasks}
    where, number = inside, None
    if inside not in known and "," in inside:  # a comma may be part of a task's name
        where, last = (part.strip() for part in inside.rsplit(",", 1))
        number = _number(last)
    if where != "*" and where not in known:
        raise ValueError(unknown(f"task of the perturbation {text!r}", where, known))
    if (kind.fits is None) != (number is None) or (kind.fits is not None and not kind.fits(number or 0.0)):
        raise ValueError(f"perturbation {text!r}: wanted {kind.wanted} behind the task")
    chosen: Iterable[Task] = known.values() if where == "*" else [known[where]]
    for task in chosen:
        if name == "noise" and task.kind == "classification" and number is not None and number > 1:
            raise ValueError(
                f"perturbation {text!r}: task {task.name!r} is a classification: wanted a share from 0 to 1"
            )
        if kind.regression_only and task.kind != "regression":
            raise ValueError(f"perturbation {text!r}: task {task.name!r} is no regression")
        if name == "duplicate" and _copy(task.name) in known:
            raise ValueError(f"perturbation {text!r}: there is a task {_copy(task.name)!r} already")
    return [_Change(name, task, number or 0.0) for task in chosen]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _copy(task: str) -> str:
    return f"{task}_copy"


def _labelled_rows(split: Split, task: str) -> Tensor:
    return split.labelled[task].nonzero().flatten() if task in split.labelled else torch.arange(len(split))


def _with_copied_data(split: Split, task: str) -> Split:
    labelled = {**split.labelled, _copy(task): split.labelled[task]} if task in split.labelled else split.labelled
    return replace(split, targets={**split.targets, _copy(task): split.targets[task]}, labelled=labelled)


def _with_copy(groups: Groups, task: str) -> Groups:
    """The tree with the copy of a task beside the task."""

    def grown(group: Groups | Sequence[str]) -> Groups | Sequence[str]:
        if isinstance(group, Mapping):
            return _with_copy(group, task)
        tasks = (group,) if isinstance(group, str) else tuple(group)
        return (*tasks, _copy(task)) if task in tasks else tasks

    return {name: grown(group) for name, group in groups.items()}
