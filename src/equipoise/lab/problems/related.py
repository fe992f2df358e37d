"""Regressions whose targets are correlated as a tree of tasks says."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from equipoise.lab.problem import Problem, Split, Splits, Task
from equipoise.lab.problems.relative import RelativeMeanSquaredError

_WIDTHS = {"small": 8, "large": 96}
_UNITS = 8


@dataclass(frozen=True, kw_only=True)
class RelatedRegressions(Problem):
    r"""Regressions of sums of random functions, some of which several tasks have in common.

    The target of task i is :math:`\sigma_i (\sum_n \sqrt{s_{in}} f_n(x) + \nu \epsilon)`: every node n of the tree above the
    task adds a function of its own, with a share :math:`s_{in}` of the variance, and these shares sum to 1. The functions are
    uncorrelated and of variance 1 on the training samples, so that there, without noise, the correlation of two tasks is the
    sum of the shares of those nodes that both have. They are sums of 8 tanh units with random weights, each less its part in
    those before; inputs are standard normal.

    The trunk has two ReLU layers below the last shared layer, a group one layer, a head is affine; all of them are 8 (small)
    or 96 (large) wide.

    Attributes:
        capacity: The width of the network, 8 or 96.
        inputs: Number of inputs.
        scale_ratio: The largest scale over the smallest. Scales are a geometric series within each group.
        noise: Standard deviation of the noise on the targets, in units of the scale.
        train_samples: Samples for training.
        validation_samples: Samples for validation.
        test_samples: Samples for test.
        data_seed: Seed of the functions, of the inputs and of the noise.

    Units:
        The loss is the squared error, of the order of the squared scale. The metric is the loss over the squared scale: 1 is
        that of a constant, and the squared noise is the best that can be reached.
    """

    steps: int = 2000
    batch_size: int = 100
    learning_rate: float = 3e-3
    capacity: Literal["small", "large"] = "large"
    inputs: int = 6
    scale_ratio: float = 10.0
    noise: float = 0.1
    train_samples: int = 4000
    validation_samples: int = 500
    test_samples: int = 1000
    data_seed: int = 0

    def __post_init__(self) -> None:
        for name in ("scale_ratio", "noise"):
            value, least = getattr(self, name), 1.0 if name == "scale_ratio" else 0.0
            if not least <= value < inf:
                raise ValueError(f"{name}: wanted a finite number of at least {least:g}, found {value}")
        for name in ("inputs", "train_samples", "validation_samples", "test_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: wanted at least 1, found {getattr(self, name)}")

    @abstractmethod
    def shares(self) -> Mapping[str, Mapping[str, float]]:
        """By task, the share of the variance that the function of each node adds; those of a task sum to 1."""

    @abstractmethod
    def scale_of(self, task: str) -> float:
        """The scale of a task."""

    @property
    def tasks(self) -> tuple[Task, ...]:
        """One regression for each leaf of the tree."""
        return tuple(
            Task(name, functional.mse_loss, partial(RelativeMeanSquaredError, sigma), "regression", scale=sigma)
            for name, sigma in ((name, self.scale_of(name)) for name in self.shares())
        )

    def splits(self) -> Splits:
        """Draw the inputs, then the function of every node, then the noise of every task."""
        generator = torch.Generator().manual_seed(self.data_seed)
        sizes = [self.train_samples, self.validation_samples, self.test_samples]
        x = torch.randn(sum(sizes), self.inputs, generator=generator)
        shares = self.shares()
        nodes = list(dict.fromkeys(node for path in shares.values() for node in path))
        if self.train_samples <= len(nodes):
            raise ValueError(f"train_samples: wanted more than the {len(nodes)} functions, found {self.train_samples}")
        values = dict(zip(nodes, self._uncorrelated(x, len(nodes), generator).split(1, dim=1), strict=True))
        targets = {}
        for task, path in shares.items():
            signal = torch.stack([share**0.5 * values[node] for node, share in path.items()]).sum(dim=0)
            noise = self.noise * torch.randn(signal.shape, generator=generator)
            targets[task] = self.scale_of(task) * (signal + noise)
        parts = torch.split(torch.arange(len(x)), sizes)
        return Splits(*(Split(x[part], {task: y[part] for task, y in targets.items()}) for part in parts))

    def trunk(self) -> nn.Module:
        """Two linear layers with ReLU."""
        width = _WIDTHS[self.capacity]
        return nn.Sequential(nn.Linear(self.inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())

    def shared_layer(self) -> nn.Module:
        """A linear layer."""
        return nn.Linear(_WIDTHS[self.capacity], _WIDTHS[self.capacity])

    def branch(self, group: str) -> nn.Module:
        """ReLU and a linear layer."""
        return nn.Sequential(nn.ReLU(), nn.Linear(_WIDTHS[self.capacity], _WIDTHS[self.capacity]))

    def head(self, task: Task) -> nn.Module:
        """ReLU and a linear layer with one output ``(B, 1)``."""
        return nn.Sequential(nn.ReLU(), nn.Linear(_WIDTHS[self.capacity], 1))

    def _uncorrelated(self, x: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """The values ``(N, count)`` of random functions, uncorrelated and of mean 0 and variance 1 on the training samples."""
        weights = torch.randn(count, self.inputs, _UNITS, generator=generator)
        shifts, signs = torch.randn(2, count, 1, _UNITS, generator=generator)
        values = (torch.tanh(x @ weights + shifts) * signs).sum(dim=2).T.double()
        train = values[: self.train_samples]
        factor = torch.linalg.cholesky(torch.cov(train.T).reshape(count, count))
        white: Tensor = torch.linalg.solve_triangular(factor, (values - train.mean(dim=0)).T, upper=False)
        return white.T.float()
