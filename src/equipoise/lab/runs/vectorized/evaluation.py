"""Losses and metrics of all runs on all splits."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from equipoise.lab.problem import Split, Splits, Task
from equipoise.lab.record import Evaluation
from equipoise.lab.runs.evaluation import evaluate, evaluation, metrics_of, thinned
from equipoise.lab.runs.vectorized.networks import StackedNetworks

_RUNS = 64
"""So many networks at a time are evaluated."""


class StackedEvaluations:
    """Losses and metrics of all networks at some steps.

    Args:
        networks: The networks, K of them.
        tasks: The tasks.
        data: The data sets.
        data_of: The number of each run's data set ``(K,)``.
    """

    def __init__(
        self, networks: StackedNetworks, tasks: Sequence[Task], data: Sequence[Splits], data_of: Tensor
    ) -> None:
        self._networks, self._tasks, self._data_of = networks, tasks, data_of
        self._splits = {
            "train": stacked([thinned(splits.train, len(splits.test)) for splits in data]),
            "validation": stacked([splits.validation for splits in data]),
            "test": stacked([splits.test for splits in data]),
        }
        self._metrics = {task.name: metrics_of(task, torch.device("cpu")) for task in tasks}
        self._found: list[dict[int, dict[str, list[list[float]]]]] = [{} for _ in data_of]

    def take(self, step: int, some: Collection[int]) -> None:
        """Evaluate some of the networks as they are after ``step`` steps."""
        for name, split in self._splits.items():
            for begin in range(0, len(self._found), _RUNS):
                runs = slice(begin, min(begin + _RUNS, len(self._found)))
                asked = [i for i in range(runs.start, runs.stop) if i in some]
                if not asked:
                    continue
                outputs = self._networks.outputs(split.inputs[self._data_of[runs]], runs)
                for i in asked:
                    self._found[i].setdefault(step, {})[name] = [
                        evaluate(
                            task,
                            outputs[task.name][i - begin],
                            split.targets[task.name][self._data_of[i]],
                            self._metrics[task.name],
                        )
                        for task in self._tasks
                    ]

    def validation_losses(self, step: int, runs: slice) -> Tensor:
        """The validation losses of some runs at a step ``(K, T)``; NaN where a run was not evaluated."""
        unknown = [math.nan] * len(self._tasks)
        found = [row.get(step) for row in self._found[runs]]
        return torch.tensor([unknown if row is None else [v[0] for v in row["validation"]] for row in found])

    def steps(self, run: int) -> tuple[int, ...]:
        """The steps at which a run was evaluated."""
        return tuple(self._found[run])

    def of(self, split: str, run: int) -> Evaluation:
        """The losses and metrics of a run on one split."""
        rows = [row[split] for row in self._found[run].values()]
        return evaluation(self._tasks, {task.name: [row[t] for row in rows] for t, task in enumerate(self._tasks)})


def stacked(splits: Sequence[Split]) -> Split:
    """Splits of the same form as one, with a dimension in front that counts them."""
    targets = {task: torch.stack([split.targets[task] for split in splits]) for task in splits[0].targets}
    return Split(torch.stack([split.inputs for split in splits]), targets)
