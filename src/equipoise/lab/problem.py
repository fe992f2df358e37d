"""A problem: data with fixed splits, tasks, and the parts of a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor, nn

from equipoise.lab.groups import Groups, tasks_by_group
from equipoise.lab.networks.network import Network

if TYPE_CHECKING:
    from torchmetrics import Metric


@dataclass(frozen=True)
class Task:
    """One task: its loss, its metric, and the kind of likelihood behind the loss.

    Attributes:
        name: The task's name, as it appears in every table and figure.
        loss: ``(outputs, targets) -> scalar``; the mean over the samples of a batch.
        metric: Builds a fresh torchmetrics metric that is updated with ``(outputs, targets)``. Whether higher is better
            is read off the metric.
        kind: The likelihood behind the loss; uncertainty weighting has one formula for each.
        scale: The size of the targets, for a problem whose heads start and step in proportion to it.
        more_metrics: Builders of further metrics of the task by name, for a field that reports several. Tables have a row
            for each; the curves and the mean over tasks show ``metric``.
    """

    name: str
    loss: Callable[[Tensor, Tensor], Tensor]
    metric: Callable[[], Metric]
    kind: Literal["regression", "classification"]
    scale: float = 1.0
    more_metrics: Mapping[str, Callable[[], Metric]] = field(default_factory=dict)


@dataclass(frozen=True)
class Split:
    """Samples of one split.

    Attributes:
        inputs: The network's inputs.
        targets: The labels that each task's loss and metric take, by task name. Where a label is missing, any number of the
            right type.
        labelled: Which samples have a label, by task name; a task that is not named has all its labels. Loss and metric
            see the labelled samples only, and a task without any in a batch is absent in that step.

    Shape:
        ``inputs`` is ``(N, *)``; each of ``targets`` is ``(N, *)``; each of ``labelled`` is ``(N,)``, of Booleans.
    """

    inputs: Tensor
    targets: Mapping[str, Tensor]
    labelled: Mapping[str, Tensor] = field(default_factory=dict)

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
        learning_rate: The network's learning rate, at its largest.
        momentum: Momentum of SGD.
        betas: Adam's and AdamW's decay rates of the first and second moment.
        weight_decay: The optimiser's weight decay: decoupled for AdamW, else added to the gradient.
        schedule: How the learning rate goes on after the warm-up: it stays, or falls to 0 at the last step, along a cosine
            or a line.
        warmup: Steps over which the learning rate rises linearly from 0.
        scaled_heads: Whether the parameters of each head start as ``task.scale`` times their usual values, and step at
            ``task.scale`` times the learning rate.
        perturbation: Changes to the tasks that a method should stand, such as ``"loss_times(f1, 1000)"``; see `perturbed`.
    """

    steps: int = 1000
    batch_size: int = 128
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup: int = 0
    scaled_heads: bool = False
    perturbation: str | tuple[str, ...] = ()
    evaluations: ClassVar[int] = 20
    """How often the splits are evaluated over a run: so seldom that it takes no more than about a tenth of the training."""
    data_settings: ClassVar[frozenset[str]] = frozenset()
    """Settings that change the numbers in the data and nothing else: runs that differ in them can be trained together."""
    tasks_from_data: ClassVar[bool] = False
    """Whether `tasks` reads the data, as a list of all problems does not."""
    judged_by: ClassVar[str] = ""
    """The task whose metric, an error, tells on the validation split where a run is read and which settings are best, where
    the task-normalised loss says little about the result."""

    @property
    @abstractmethod
    def tasks(self) -> tuple[Task, ...]:
        """The tasks, in the order of every table."""

    @property
    def groups(self) -> Groups:
        """Which tasks belong together: their names by the name of a group, or the groups that it is made of.

        Tables and the report then say how each group fares, beside its tasks. Methods see the tasks, not the groups, but for
        the method ``nested``; see `branch`. None by default.
        """
        return {}

    @abstractmethod
    def splits(self) -> Splits:
        """The data, split once and for all."""

    def network(self) -> Network:
        """The network, from PyTorch's global random state: `trunk`, `shared_layer`, `branch` and the `head` of every task.

        A problem whose network has another form overrides this alone.
        """
        trunk, layer = self.trunk(), self.shared_layer()
        tree = {} if type(self).branch is Problem.branch else self.groups
        branches = {path: self.branch(path) for path in tasks_by_group(tree, [task.name for task in self.tasks])}
        heads = {task.name: self.head(task) for task in self.tasks}
        return Network(trunk, layer, heads, tree, branches)

    def trunk(self) -> nn.Module:
        """The shared layers below the last shared layer."""
        raise self._lacks("trunk")

    def shared_layer(self) -> nn.Module:
        """The last shared layer, W: where gradient norms are taken."""
        raise self._lacks("shared_layer")

    def branch(self, group: str) -> nn.Module:
        """The layers of a group, by its path such as ``"stress/hoop"``: one layer, behind whose output its tasks part.

        They read the output of the last shared layer, or of the group above. A problem that has `groups` and writes this can
        be trained by a nested method, which has a balancer for each group beside one for the groups: a flat method and a
        nested one train the same network. Without it the heads read the last shared layer.
        """
        raise self._lacks("branch")

    def head(self, task: Task) -> nn.Module:
        """The task's own layers. They read the output of the last shared layer, or of the task's group."""
        raise self._lacks("head")

    def _lacks(self, part: str) -> NotImplementedError:
        return NotImplementedError(
            f"problem {type(self).__name__!r} has no {part}(): write trunk, shared_layer and head, or network"
        )
