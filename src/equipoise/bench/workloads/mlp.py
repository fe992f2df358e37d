"""A multilayer perceptron with a head of one number per task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from equipoise.bench.workloads.workload import Heads, Parts, Workload


@final
@dataclass(frozen=True, kw_only=True)
class MLP(Workload):
    """Six linear layers, ReLU between them; a regression of one number per task.

    Attributes:
        num_tasks: T.
        width: Numbers in and out of every layer.
        batch_size: Samples per step.
    """

    num_tasks: int = 3
    width: int = 512
    batch_size: int = 128
    last_shared: ClassVar[str] = "the sixth linear layer"

    @property
    def tasks(self) -> tuple[str, ...]:
        """Numbered."""
        return tuple(f"task_{i}" for i in range(self.num_tasks))

    def parts(self) -> Parts:
        """Five layers, the sixth, and the heads."""
        heads = {task: nn.Sequential(nn.ReLU(), nn.Linear(self.width, 1)) for task in self.tasks}
        return Parts(five_layers(self.width), nn.Linear(self.width, self.width), Heads(heads))

    def batch(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Random numbers."""
        targets = {task: torch.randn(self.batch_size, 1) for task in self.tasks}
        return torch.randn(self.batch_size, self.width), targets

    def losses(self, outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mean squared errors."""
        return {task: functional.mse_loss(outputs[task], targets[task]) for task in self.tasks}


def five_layers(width: int) -> nn.Sequential:
    """Five linear layers, each with ReLU behind it."""
    return nn.Sequential(*(layer for _ in range(5) for layer in (nn.Linear(width, width), nn.ReLU())))
