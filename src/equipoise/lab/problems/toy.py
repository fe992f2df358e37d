"""The toy problem of the GradNorm paper."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from equipoise.lab.problem import Problem, Split, Splits, Task
from equipoise.lab.problems.relative import RelativeMeanSquaredError

_SIZES = {"full": (250, 100, 100), "fifth": (50, 20, 20)}
"""Inputs, width of the trunk, and outputs of a task."""

_SIGMAS = {2: (1.0, 100.0), 10: (48.0, 3.0, 54.0, 16.0, 9.0, 30.0, 52.0, 26.0, 47.0, 81.0)}


@dataclass(frozen=True, kw_only=True)
class Toy(Problem):
    r"""The paper's toy: regressions that differ only in their scale and slightly in their matrix.

    Task i is to learn :math:`f_i(x) = \sigma_i \tanh((B + \epsilon_i) x)` from 250 inputs to 100 outputs, with a matrix B
    that all tasks share and a smaller one for each. The trunk has four layers of 100 ReLU neurons, the fourth of which is
    the last shared layer; a head is affine. At a fifth of the size, there are 50 inputs, 20 neurons in a layer and 20 outputs.

    Attributes:
        size: The paper's size, or a fifth of it, which is trained several times as fast.
        num_tasks: 2 or 10; any number if ``sigmas`` is given.
        sigmas: The scales, one per task. None: 1 and 100 (the paper's) for two tasks; 48, 3, 54, 16, 9, 30, 52, 26, 47,
            81 for ten.
        spread: How N(0, 10) and N(0, 3.5), the entries of B and of epsilon_i, are read: 10 and 3.5 are standard
            deviations or variances.
        inputs: Distribution of the 250 inputs: uniform on the unit sphere, uniform in [0, 1], or standard normal.
        input_scale: The inputs are multiplied with it. It decides how far the tanh saturates.
        train_samples: Samples for training.
        validation_samples: Samples for validation.
        test_samples: Samples for test.
        data_seed: Seed of the matrices and of the inputs.

    Units:
        The loss is the squared error, a mean over samples and outputs, so task i's is of the order of sigma_i squared.
        The metric is the loss over sigma_i squared and has no unit.

    Differs from the paper:
        The paper gives the functions, the dimensions, the two scales, the network and the loss. It gives neither the ten
        scales (those here are those of public reproductions), nor the reading of N(0, 10), the distribution of the
        inputs, the numbers of samples and steps, the optimiser and its rate, nor whether the loss is a sum or a mean over
        the outputs. These are settings here, or stated above.

    References:
        Chen et al. 2018, GradNorm, section 4 and Eq. 3.
    """

    steps: int = 5000
    batch_size: int = 100
    size: Literal["full", "fifth"] = "full"
    num_tasks: int = 2
    sigmas: tuple[float, ...] | None = None
    spread: Literal["standard_deviation", "variance"] = "standard_deviation"
    inputs: Literal["unit_sphere", "uniform", "normal"] = "unit_sphere"
    input_scale: float = 1.0
    train_samples: int = 10_000
    validation_samples: int = 1000
    test_samples: int = 1000
    data_seed: int = 0

    def __post_init__(self) -> None:
        if self.sigmas is None:
            if self.num_tasks not in _SIGMAS:
                raise ValueError(
                    f"num_tasks: there are scales for 2 or 10 tasks, found {self.num_tasks}; give others with sigmas"
                )
        elif len(self.sigmas) != self.num_tasks:
            raise ValueError(f"sigmas: wanted one per task, that is num_tasks={self.num_tasks}, found {self.sigmas}")
        elif not all(sigma > 0 and isfinite(sigma) for sigma in self.sigmas):
            raise ValueError(f"sigmas: wanted positive, finite numbers, found {self.sigmas}")

    @property
    def tasks(self) -> tuple[Task, ...]:
        """One regression per scale, named after it."""
        return tuple(
            Task(name, functional.mse_loss, partial(RelativeMeanSquaredError, sigma), "regression", scale=sigma)
            for name, sigma in self._scales().items()
        )

    def splits(self) -> Splits:
        """Draw B, then each epsilon_i, then the inputs of all three splits."""
        generator = torch.Generator().manual_seed(self.data_seed)
        shared, own = (10.0, 3.5) if self.spread == "standard_deviation" else (10.0**0.5, 3.5**0.5)
        inputs, _, outputs = _SIZES[self.size]
        common = shared * torch.randn(outputs, inputs, generator=generator)
        matrices = {name: common + own * torch.randn(outputs, inputs, generator=generator) for name in self._scales()}
        sizes = [self.train_samples, self.validation_samples, self.test_samples]
        x = self._draw_inputs(sum(sizes), generator)
        targets = {name: sigma * torch.tanh(x @ matrices[name].T) for name, sigma in self._scales().items()}
        parts = torch.split(torch.arange(len(x)), sizes)
        return Splits(*(Split(x[part], {name: y[part] for name, y in targets.items()}) for part in parts))

    def trunk(self) -> nn.Module:
        """The first three layers of the paper's trunk."""
        inputs, width, _ = _SIZES[self.size]
        layers = [nn.Linear(inputs, width), nn.Linear(width, width), nn.Linear(width, width)]
        return nn.Sequential(*(module for layer in layers for module in (layer, nn.ReLU())))

    def shared_layer(self) -> nn.Module:
        """The fourth layer; its ReLU is the first module of every head."""
        _, width, _ = _SIZES[self.size]
        return nn.Linear(width, width)

    def head(self, task: Task) -> nn.Module:
        """ReLU and an affine layer."""
        _, width, outputs = _SIZES[self.size]
        return nn.Sequential(nn.ReLU(), nn.Linear(width, outputs))

    def _scales(self) -> dict[str, float]:
        """The scales by task name; the names count the tasks, as two may have the same scale."""
        sigmas = _SIGMAS[self.num_tasks] if self.sigmas is None else self.sigmas
        return {f"f{i}_sigma_{sigma:g}": sigma for i, sigma in enumerate(sigmas)}

    def _draw_inputs(self, samples: int, generator: torch.Generator) -> Tensor:
        draw = torch.rand if self.inputs == "uniform" else torch.randn
        drawn = draw((samples, _SIZES[self.size][0]), generator=generator)
        if self.inputs == "unit_sphere":
            drawn = functional.normalize(drawn, dim=1)
        return self.input_scale * drawn
