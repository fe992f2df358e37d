"""A user's problem: two linear regressions of different scale, small enough to train in no time."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from torchmetrics import MeanSquaredError

from equipoise.lab import Problem, Split, Splits, Task


class OnTraining(nn.Module):
    """Hands on its input, and runs code before it does so in training."""

    def __init__(self, code):
        super().__init__()
        self.code = code

    def forward(self, inputs):
        if self.training:
            exec(self.code, {})
        return inputs


@dataclass(frozen=True, kw_only=True)
class Tiny(Problem):
    """Two linear regressions.

    Attributes:
        scales: Scales of the targets.
        dropout: Share of the trunk's outputs that are dropped.
        on_training: Python code that runs at the beginning of every training step.
    """

    steps: int = 20
    batch_size: int = 8
    learning_rate: float = 1e-2
    scales: tuple[float, ...] = (1.0, 10.0)
    dropout: float = 0.0
    on_training: str = ""

    @property
    def tasks(self):
        return tuple(
            Task(f"scale_{scale:g}", functional.mse_loss, MeanSquaredError, "regression") for scale in self.scales
        )

    def splits(self):
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(80, 4, generator=generator)
        matrices = torch.randn(len(self.scales), 4, 2, generator=generator)
        targets = {
            task.name: scale * inputs @ m for task, scale, m in zip(self.tasks, self.scales, matrices, strict=True)
        }
        parts = torch.split(torch.arange(80), [40, 20, 20])
        return Splits(*(Split(inputs[part], {name: y[part] for name, y in targets.items()}) for part in parts))

    def trunk(self):
        return nn.Sequential(OnTraining(self.on_training), nn.Linear(4, 6), nn.ReLU(), nn.Dropout(self.dropout))

    def shared_layer(self):
        return nn.Linear(6, 5)

    def head(self, task):
        return nn.Linear(5, 2)
