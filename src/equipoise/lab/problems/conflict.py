"""Tasks that want opposite features of the layers they share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from equipoise.lab.problem import Problem, Split, Splits, Task
from equipoise.lab.problems.relative import RelativeMeanSquaredError

_WIDTHS = {"small": 4, "large": 96}
_OUTPUTS = 4


@dataclass(frozen=True, kw_only=True)
class Conflict(Problem):
    r"""Regressions of the positive parts of projections whose direction turns from task to task.

    Task i is to learn :math:`y_i = \sigma_i M \max(0, A_i x)` with :math:`A_i = A \cos\theta_i + B \sin\theta_i`. The angle
    rises from 0 for the first task to :math:`\pi d` for the last, with the degree of conflict d: at 0 all tasks are one
    function, at 1 the last task needs the positive part of :math:`-A x`, so that a ReLU unit which serves the first task is
    silent where the last one needs it. Enough units serve all tasks (large capacity); too few must be shared out among them
    (small).

    The trunk has one ReLU layer, the last shared layer is the second; a head is affine. All inputs and entries of A and B are
    standard normal.

    Attributes:
        capacity: The width of both shared layers, 4 or 96.
        num_tasks: Number of tasks, at least 2.
        degree: The degree of conflict d, from 0 to 1.
        scale_ratio: The last task's scale over the first's; the scales are a geometric series.
        inputs: Number of inputs.
        projections: Rows of A.
        train_samples: Samples for training.
        validation_samples: Samples for validation.
        test_samples: Samples for test.
        data_seed: Seed of the matrices and of the inputs.

    Units:
        The loss is the squared error, a mean over samples and 4 outputs. The metric is the loss over the squared scale; 1 is
        that of a constant.
    """

    steps: int = 2000
    batch_size: int = 100
    learning_rate: float = 3e-3
    capacity: Literal["small", "large"] = "small"
    num_tasks: int = 2
    degree: float = 1.0
    scale_ratio: float = 1.0
    inputs: int = 8
    projections: int = 4
    train_samples: int = 4000
    validation_samples: int = 500
    test_samples: int = 1000
    data_seed: int = 0

    def __post_init__(self) -> None:
        if self.num_tasks < 2:
            raise ValueError(f"num_tasks: wanted at least 2, found {self.num_tasks}")
        if not 0 <= self.degree <= 1:
            raise ValueError(f"degree: wanted a number from 0 to 1, found {self.degree}")
        if not 0 < self.scale_ratio < math.inf:
            raise ValueError(f"scale_ratio: wanted a positive, finite number, found {self.scale_ratio}")
        for name in ("inputs", "projections"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: wanted at least 1, found {getattr(self, name)}")

    @property
    def tasks(self) -> tuple[Task, ...]:
        """One regression for each angle."""
        sigmas = [self.scale_ratio ** (i / (self.num_tasks - 1)) for i in range(self.num_tasks)]
        return tuple(
            Task(f"f{i}", functional.mse_loss, partial(RelativeMeanSquaredError, sigma), "regression", scale=sigma)
            for i, sigma in enumerate(sigmas)
        )

    def splits(self) -> Splits:
        """Draw the matrices, then the inputs."""
        generator = torch.Generator().manual_seed(self.data_seed)
        shape = (self.projections, self.inputs)
        one, other = (torch.randn(shape, generator=generator) for _ in range(2))
        mix = torch.randn(_OUTPUTS, self.projections, generator=generator)
        sizes = [self.train_samples, self.validation_samples, self.test_samples]
        x = torch.randn(sum(sizes), self.inputs, generator=generator)
        targets = {}
        for i, task in enumerate(self.tasks):
            angle = math.pi * self.degree * i / (self.num_tasks - 1)
            values = torch.relu(x @ (math.cos(angle) * one + math.sin(angle) * other).T) @ mix.T
            targets[task.name] = task.scale * self._standardised(values)
        parts = torch.split(torch.arange(len(x)), sizes)
        return Splits(*(Split(x[part], {name: y[part] for name, y in targets.items()}) for part in parts))

    def trunk(self) -> nn.Module:
        """A linear layer with ReLU."""
        return nn.Sequential(nn.Linear(self.inputs, _WIDTHS[self.capacity]), nn.ReLU())

    def shared_layer(self) -> nn.Module:
        """A linear layer."""
        return nn.Linear(_WIDTHS[self.capacity], _WIDTHS[self.capacity])

    def head(self, task: Task) -> nn.Module:
        """ReLU and an affine layer with 4 outputs."""
        return nn.Sequential(nn.ReLU(), nn.Linear(_WIDTHS[self.capacity], _OUTPUTS))

    def _standardised(self, values: Tensor) -> Tensor:
        train = values[: self.train_samples]
        return (values - train.mean(dim=0)) / train.std(dim=0)
