"""A problem: data with fixed splits, tasks, and the parts of a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torchmetrics import Metric

from equipoise.lab._groups import Groups


@dataclass(frozen=True)
class Task:
    """One task: its loss, its metric, and the kind of likelihood behind the loss.

    Attributes:
        name: The task's name, as it appears in every table and figure.
        loss: ``(outputs, targets) -> scalar``; the mean over the samples of a batch.
        metric: Builds a fresh torchmetrics metric that is updated with ``(outputs, targets)``. Whether higher is better
            is read off the metric.
        kind: The likelihood behind the loss; uncertainty weighting has one formula for each.
    """

    name: str
    loss: Callable[[Tensor, Tensor], Tensor]
    metric: Callable[[], Metric]
    kind: Literal["regression", "classification"]


@dataclass(frozen=True)
class Split:
    """Samples of one split.

    Shape:
        ``inputs`` is ``(N, *)``; each of ``targets`` is ``(N, *)``, by task name.
    """

    inputs: Tensor
    targets: Mapping[str, Tensor]

    def __len__(self) -> int:
        """Number of samples N."""
        return len(self.inputs)


@dataclass(frozen=True)
class Splits:
    """The three splits of a problem. They never depend on the seed of a run."""

    train: Split
    validation: Split
    test: Split


@dataclass(frozen=True, kw_only=True)
class Problem(ABC):
    """A multi-task problem. A subclass is a frozen dataclass; its fields are the problem's settings.

    Every field takes part in the identity of a run, so two runs with different settings are never mixed up. The parts of
    the network are built under the seed of the run; the data are not, so every run sees the same splits.

    Attributes:
        steps: Optimiser steps of a run unless the command line says otherwise.
        batch_size: Samples in a training batch.
        optimizer: The network's optimiser.
        learning_rate: The network's learning rate.
    """

    steps: int = 1000
    batch_size: int = 128
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 1e-3

    @property
    @abstractmethod
    def tasks(self) -> tuple[Task, ...]:
        """The tasks, in the order of every table."""

    @property
    def groups(self) -> Groups:
        """Which tasks belong together: their names by the name of a group, or the groups that it is made of.

        Tables and the report then say how each group fares, beside its tasks. The network has one fork all the same, and
        methods see the tasks, not the groups. None by default.
        """
        return {}

    @abstractmethod
    def splits(self) -> Splits:
        """The data, split once and for all."""

    @abstractmethod
    def trunk(self) -> nn.Module:
        """The shared layers below the last shared layer."""

    @abstractmethod
    def shared_layer(self) -> nn.Module:
        """The last shared layer, W: where gradient norms are taken."""

    @abstractmethod
    def head(self, task: Task) -> nn.Module:
        """The task's own layers. They read the output of the last shared layer."""
