"""Regressions that differ in scale, difficulty and noise, each as far as a setting says."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from equipoise.lab.problem import Problem, Split, Splits, Task
from equipoise.lab.problems.relative import RelativeMeanSquaredError

_FEATURES = 4
_OUTPUTS = 4


@dataclass(frozen=True, kw_only=True)
class UnequalTasks(Problem):
    r"""Regressions that differ in their scale, their difficulty and their noise, each as far as a setting says.

    Task i is to learn :math:`y_i = \sigma_i (M_i \sin(\phi_i A x + b) + \nu_i \epsilon)` with the scale :math:`\sigma_i`, the
    frequency :math:`\phi_i`, which makes it easy or hard to learn, and the noise :math:`\nu_i`. All tasks read the same 4
    projections of the input, the rows of A, of length 1; the matrix :math:`M_i` of 4 outputs is a task's own, and its
    outputs have mean 0 and variance 1 on the training samples before noise and scale. Inputs and the entries of the matrices
    are standard normal.

    The trunk has two ReLU layers below the last shared layer; a head is affine.

    Attributes:
        scales: The scale of each task.
        frequencies: The frequency of each task. One of 2 takes several times the steps of one of 1, and more neurons.
        noises: The standard deviation of each task's noise, in units of its scale.
        width: The width of the three shared layers.
        inputs: Number of inputs.
        train_samples: Samples for training.
        validation_samples: Samples for validation.
        test_samples: Samples for test.
        data_seed: Seed of the matrices, of the inputs and of the noise.

    Units:
        The loss is the squared error, a mean over samples and outputs, of the order of the squared scale. The metric is the
        loss over the squared scale: 1 is that of a constant, and the squared noise is the best that can be reached.
    """

    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 1e-2
    scales: tuple[float, ...] = (1.0, 10.0)
    frequencies: tuple[float, ...] = (1.0, 2.0)
    noises: tuple[float, ...] = (0.1, 0.1)
    width: int = 20
    inputs: int = 5
    train_samples: int = 2048
    validation_samples: int = 500
    test_samples: int = 1000
    data_seed: int = 0
    evaluations: ClassVar[int] = 10
    data_settings: ClassVar[frozenset[str]] = frozenset({"frequencies", "noises", "data_seed"})

    def __post_init__(self) -> None:
        if not self.scales:
            raise ValueError("scales: wanted one per task, found none")
        for name in ("scales", "frequencies", "noises"):
            values = getattr(self, name)
            if len(values) != len(self.scales):
                raise ValueError(f"{name}: wanted one per task, {len(self.scales)} as scales has, found {values}")
            if not all(isfinite(value) and (value > 0 or (name == "noises" and value == 0)) for value in values):
                kind = "numbers of at least 0" if name == "noises" else "positive numbers"
                raise ValueError(f"{name}: wanted finite {kind}, found {values}")
        for name in ("width", "inputs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: wanted at least 1, found {getattr(self, name)}")

    @property
    def tasks(self) -> tuple[Task, ...]:
        """One regression per scale."""
        return tuple(
            Task(f"f{i}", functional.mse_loss, partial(RelativeMeanSquaredError, sigma), "regression", scale=sigma)
            for i, sigma in enumerate(self.scales)
        )

    def splits(self) -> Splits:
        """Draw the shared projections, then every task's matrix, then the inputs, then the noise."""
        generator = torch.Generator().manual_seed(self.data_seed)
        directions = functional.normalize(torch.randn(_FEATURES, self.inputs, generator=generator), dim=1)
        phases = 2 * torch.pi * torch.rand(_FEATURES, generator=generator)
        mixes = [torch.randn(_OUTPUTS, _FEATURES, generator=generator) for _ in self.scales]
        sizes = [self.train_samples, self.validation_samples, self.test_samples]
        x = torch.randn(sum(sizes), self.inputs, generator=generator)
        targets = {}
        for i, (sigma, frequency, noise) in enumerate(zip(self.scales, self.frequencies, self.noises, strict=True)):
            signal = self._standardised(torch.sin(frequency * x @ directions.T + phases) @ mixes[i].T)
            targets[f"f{i}"] = sigma * (signal + noise * torch.randn(signal.shape, generator=generator))
        parts = torch.split(torch.arange(len(x)), sizes)
        return Splits(*(Split(x[part], {task: y[part] for task, y in targets.items()}) for part in parts))

    def trunk(self) -> nn.Module:
        """Two linear layers with ReLU."""
        layers = [nn.Linear(self.inputs, self.width), nn.Linear(self.width, self.width)]
        return nn.Sequential(*(module for layer in layers for module in (layer, nn.ReLU())))

    def shared_layer(self) -> nn.Module:
        """A linear layer."""
        return nn.Linear(self.width, self.width)

    def head(self, task: Task) -> nn.Module:
        """ReLU and a linear layer with 4 outputs."""
        return nn.Sequential(nn.ReLU(), nn.Linear(self.width, _OUTPUTS))

    def _standardised(self, values: Tensor) -> Tensor:
        train = values[: self.train_samples]
        return (values - train.mean(dim=0)) / train.std(dim=0)
