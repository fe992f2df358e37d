"""A workload: a network with several losses and a batch for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

Setup = Literal["eager", "compiled", "ddp"]
"""How the training step is run: as it is written, compiled by inductor, or on two processes under DDP."""


class Parts(NamedTuple):
    """A network in three parts. ``heads`` takes the features, or a dict of them by task, and gives the outputs."""

    trunk: nn.Module
    shared_layer: nn.Module
    heads: nn.Module


class Heads(nn.ModuleDict):
    """A head for each task."""

    def forward(self, features: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each head's output, by task; from the task's own features where there are such."""
        by_task = features if isinstance(features, dict) else dict.fromkeys(self, features)
        return {task: head(by_task[task]) for task, head in self.items()}


@dataclass(frozen=True, kw_only=True)
class Workload(ABC):
    """A network, a batch and its losses. The fields of a subclass are its sizes.

    Attributes:
        setup: How the step is run.
        bfloat16: Whether forward passes and losses are computed under autocast to bfloat16.
        last_shared: A description of W.
    """

    setup: Setup = "eager"
    bfloat16: bool = False
    last_shared: ClassVar[str]

    @property
    def processes(self) -> int:
        """How many share the step."""
        return 2 if self.setup == "ddp" else 1

    @property
    @abstractmethod
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks."""

    @abstractmethod
    def parts(self) -> Parts:
        """Build the network, from PyTorch's global random state."""

    @abstractmethod
    def batch(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Inputs and targets by name, drawn from PyTorch's global random state."""

    @abstractmethod
    def losses(self, outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """The scalar loss of every task, by name."""

    def balanced(self, outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, Tensor] | Tensor:
        """The losses as a balancer of this library takes them with the least work."""
        return self.losses(outputs, targets)

    def total(self, outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
        """The sum of the losses, as it is written without balancing."""
        return torch.stack(list(self.losses(outputs, targets).values())).sum()
