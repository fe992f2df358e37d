"""Tasks that are the columns of one output matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from equipoise.bench.workloads.mlp import five_layers
from equipoise.bench.workloads.workload import Parts, Workload


@final
@dataclass(frozen=True, kw_only=True)
class Columns(Workload):
    """Six linear layers, ReLU between them, and one output matrix with a column per task: hundreds of yes or no answers.

    Attributes:
        num_tasks: T; ToxCast has 617.
        width: Numbers in and out of every layer below the output.
        batch_size: Samples per step.
    """

    num_tasks: int = 617
    width: int = 512
    batch_size: int = 128
    last_shared: ClassVar[str] = "the sixth linear layer, below the output matrix"

    @property
    def tasks(self) -> tuple[str, ...]:
        """Numbered."""
        return tuple(f"column_{i}" for i in range(self.num_tasks))

    def parts(self) -> Parts:
        """Five layers, the sixth, and the output matrix."""
        return Parts(five_layers(self.width), nn.Linear(self.width, self.width), Outputs(self.width, self.num_tasks))

    def batch(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Random numbers and random answers."""
        answers = torch.randint(2, (self.batch_size, self.num_tasks)).float()
        return torch.randn(self.batch_size, self.width), {"columns": answers}

    def losses(self, outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """The mean over the samples of each column's cross entropy."""
        return dict(zip(self.tasks, _per_column(outputs, targets).unbind(), strict=True))

    def balanced(self, outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
        """The same in one tensor, not taken apart."""
        return _per_column(outputs, targets)

    def total(self, outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
        """One expression for all columns, as is usual."""
        return _per_column(outputs, targets).sum()


class Outputs(nn.Module):
    """All tasks' outputs in one matrix."""

    def __init__(self, width: int, num_tasks: int) -> None:
        super().__init__()
        self.activation, self.matrix = nn.ReLU(), nn.Linear(width, num_tasks)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """The outputs of all tasks, as one matrix."""
        return {"columns": self.matrix(self.activation(features))}


def _per_column(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    losses = functional.binary_cross_entropy_with_logits(outputs["columns"], targets["columns"], reduction="none")
    return losses.mean(0)
