"""Fourteen functions of 2417 yeast genes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.classification import BinaryAUROC

from equipoise.lab.extra import require
from equipoise.lab.problem import Problem, Split, Splits, Task

_FUNCTIONS = tuple(f"Class{i}" for i in range(1, 15))
_SIZES = [1500, 417, 500]


@dataclass(frozen=True, kw_only=True)
class Yeast(Problem):
    """Which of 14 functions has a yeast gene? Biological data, 14 imbalanced binary tasks.

    2417 genes with 103 features each (micro-array expression and phylogenetic profile); a gene has several functions at
    once. The rarest function, ``Class14``, has 34 genes, the most frequent, ``Class12``, has 1816. The loss of
    a task is binary cross entropy, its metric the area under the ROC curve.

    The data lie inside the package ``river``, from version 0.26 on, which needs Python 3.11. A random permutation splits
    them into 1500 genes for training, 417 for validation and 500 for test; features are standardised by mean and deviation
    of the training genes.

    Attributes:
        hidden: Width of the trunk's only layer.
        features: Width of the last shared layer, a linear one.
        split_seed: Seed of the permutation that splits the genes.

    References:
        Elisseeff and Weston 2001, "A kernel method for multi-labelled classification", NeurIPS.
    """

    evaluations: ClassVar[int] = 8

    steps: int = 300
    hidden: int = 128
    features: int = 64
    split_seed: int = 0

    @property
    def tasks(self) -> tuple[Task, ...]:
        """One binary task per function."""
        return tuple(Task(name, _cross_entropy, BinaryAUROC, "classification") for name in _FUNCTIONS)

    def splits(self) -> Splits:
        """Split the genes, and standardise them by the training genes.

        Raises:
            ValueError: ``split_seed`` leaves a split without a positive or a negative gene for one of the functions.
        """
        genes = list(require("river.datasets", extra="data").Yeast())
        inputs = torch.tensor([list(features.values()) for features, _ in genes])
        labels = torch.tensor([[functions[name] for name in _FUNCTIONS] for _, functions in genes]).long()
        order = torch.randperm(len(genes), generator=torch.Generator().manual_seed(self.split_seed))
        parts = torch.split(order, _SIZES)
        mean, deviation = inputs[parts[0]].mean(dim=0), inputs[parts[0]].std(dim=0)
        return Splits(*(self._split((inputs[part] - mean) / deviation, labels[part]) for part in parts))

    def trunk(self) -> nn.Module:
        """One linear layer with ReLU."""
        return nn.Sequential(nn.Linear(103, self.hidden), nn.ReLU())

    def shared_layer(self) -> nn.Module:
        """A linear layer."""
        return nn.Linear(self.hidden, self.features)

    def head(self, task: Task) -> nn.Module:
        """ReLU and a linear layer with one output, the logit ``(B,)``."""
        return nn.Sequential(nn.ReLU(), nn.Linear(self.features, 1), nn.Flatten(0))

    def _split(self, inputs: Tensor, labels: Tensor) -> Split:
        for name, column in zip(_FUNCTIONS, labels.unbind(dim=1), strict=True):
            if column.min() == column.max():
                raise ValueError(f"split_seed={self.split_seed}: a split has only one kind of label for task {name!r}")
        return Split(inputs, dict(zip(_FUNCTIONS, labels.T.contiguous(), strict=True)))


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
