"""A physics-informed network for Helmholtz's equation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanSquaredError

from equipoise.engine import PerLoss
from equipoise.lab.networks.network import Network
from equipoise.lab.problem import Problem, Split, Splits, Task

_TASKS = ("equation", "dirichlet", "neumann")
_WIDTHS = {"small": 20, "large": 64}


class RelativeL2Error(MeanSquaredError):
    """The root of the mean squared error of the solution, over the root mean square of the true one in the domain.

    It reads the second column of outputs and targets.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(squared=False, **kwargs)

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take a batch."""
        super().update(outputs[:, 1].contiguous(), targets[:, 1].contiguous())

    def compute(self) -> Tensor:
        """The error, without unit."""
        return super().compute() / 0.5  # the root mean square of a product of two sines


def _loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.mse_loss(outputs[:, 0], targets[:, 0])


@dataclass(frozen=True, kw_only=True)
class Helmholtz(Problem):
    r"""A physics-informed network for Helmholtz's equation in two dimensions, with a known solution.

    The network u is to solve :math:`u_{xx} + u_{yy} + k^2 u = q` in the square :math:`[-1, 1]^2`, with values given at
    :math:`x = \pm 1` and the derivative :math:`u_y` at :math:`y = \pm 1`. The right-hand side and the boundary conditions are
    those of the solution :math:`u = \sin(a \pi x) \sin(b \pi y)`. Three losses on three sets of points: ``equation`` inside,
    ``dirichlet`` at the sides with values, ``neumann`` at those with a derivative. Before training each of them is some 10 to
    10,000 times as large as the next.

    There is no fork, as every loss has points of its own: gradient norms are measured per loss, at the last hidden layer. The
    network has three hidden tanh layers and one output. Derivatives are carried forward through the layers, which is exact.

    Attributes:
        capacity: The width of the network, 20 or 64.
        frequencies: a and b of the solution, integers.
        wavenumber: k.
        train_points: Points of each kind for training.
        validation_points: Points of each kind for validation.
        test_points: Points of each kind for test.
        data_seed: Seed of the points.

    Shape:
        A sample is one point of each kind: inputs are ``(N, 3, 2)``. Outputs and targets of a task are ``(N, 2)``: the
        quantity in its loss (the left-hand side of the equation, u, u_y) and u.

    Units:
        The metric of every task is the relative L2 error of the solution at the task's points, without unit; that of
        ``equation`` is the error in the domain, by which runs are judged, on validation as on test: the losses are too far
        apart for their ratios to L(0) to tell a good solution. 1 is that of u = 0.

    References:
        Raissi, Perdikaris and Karniadakis 2019, "Physics-informed neural networks", Journal of Computational Physics 378. The
        equation as a case of unequal losses: Wang, Teng and Perdikaris 2021, "Understanding and mitigating gradient flow
        pathologies in physics-informed neural networks", SIAM Journal on Scientific Computing 43(5), section 4.1.
    """

    judged_by: ClassVar[str] = "equation"

    steps: int = 3000
    batch_size: int = 128
    learning_rate: float = 3e-3
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    capacity: Literal["small", "large"] = "large"
    frequencies: tuple[int, int] = (1, 2)
    wavenumber: float = 1.0
    train_points: int = 5000
    validation_points: int = 500
    test_points: int = 1000
    data_seed: int = 0

    def __post_init__(self) -> None:
        if min(self.frequencies) < 1:
            raise ValueError(f"frequencies: wanted two integers of at least 1, found {self.frequencies}")
        if not 0 <= self.wavenumber < math.inf:
            raise ValueError(f"wavenumber: wanted a finite number of at least 0, found {self.wavenumber}")

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The equation and the two boundary conditions."""
        return tuple(Task(name, _loss, RelativeL2Error, "regression") for name in _TASKS)

    def splits(self) -> Splits:
        """Draw the points."""
        generator = torch.Generator().manual_seed(self.data_seed)
        sizes = (self.train_points, self.validation_points, self.test_points)
        return Splits(*(self._draw(size, generator) for size in sizes))

    def network(self) -> Network:
        """The network, with its derivatives as outputs."""
        return _SolutionNetwork(_WIDTHS[self.capacity], self.wavenumber)

    def _draw(self, points: int, generator: torch.Generator) -> Split:
        inputs = 2 * torch.rand(points, 3, 2, generator=generator) - 1
        sides = 2.0 * torch.randint(2, (points, 2), generator=generator) - 1
        inputs[:, 1, 0], inputs[:, 2, 1] = sides.unbind(dim=1)
        a, b = (math.pi * n for n in self.frequencies)
        x, y = inputs.double().unbind(dim=2)
        solution = torch.sin(a * x) * torch.sin(b * y)
        equation = (self.wavenumber**2 - a**2 - b**2) * solution[:, 0]
        normal = b * torch.sin(a * x[:, 2]) * torch.cos(b * y[:, 2])
        wanted = (equation, solution[:, 1], normal)
        targets = {
            task: torch.stack([quantity, solution[:, i]], dim=1).float()
            for i, (task, quantity) in enumerate(zip(_TASKS, wanted, strict=True))
        }
        return Split(inputs, targets)


class _SolutionNetwork(Network):
    """A network u(x, y) with its first and second derivatives."""

    def __init__(self, width: int, wavenumber: float) -> None:
        nn.Module.__init__(self)
        self.hidden = [nn.Linear(2, width), nn.Linear(width, width), nn.Linear(width, width)]
        self.layers = nn.ModuleList(self.hidden)
        self.output = nn.Linear(width, 1)
        self.wavenumber = wavenumber
        self.source = PerLoss(self.hidden[-1], _TASKS)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """The quantity in every loss, and u, at the points of each task."""
        inside, ends, sides = inputs.unbind(dim=1)
        u, _, second = self.solution(inside)
        value = self.solution(ends)[0]
        other, first, _ = self.solution(sides)
        left = second.sum(dim=0) + self.wavenumber**2 * u
        pairs = zip(_TASKS, ((left, u), (value, value), (first[1], other)), strict=True)
        return {task: torch.cat(pair, dim=1) for task, pair in pairs}

    def solution(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """u, and its first and second derivatives along x and y.

        Shape:
            ``points`` is ``(B, 2)``; the three are ``(B, 1)``, ``(2, B, 1)`` and ``(2, B, 1)``.
        """
        value = points
        first = torch.eye(2, dtype=points.dtype, device=points.device).unsqueeze(1).expand(2, len(points), 2)
        second = torch.zeros_like(first)
        for layer in self.hidden:
            value, first, second = layer(value), first @ layer.weight.T, second @ layer.weight.T
            value = torch.tanh(value)
            slope = 1 - value**2
            second = slope * (second - 2 * value * first**2)
            first = slope * first
        weight = self.output.weight.T
        return self.output(value), first @ weight, second @ weight
