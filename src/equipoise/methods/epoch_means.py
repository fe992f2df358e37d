"""The mean losses of a task's last two epochs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class EpochMeans:
    """What is known of every task's epochs, each counted in the task's own losses.

    Attributes:
        sums: The sum of the losses of the epoch that runs ``(T,)``.
        counts: How many losses there have been ``(T,)``.
        last_epoch: The mean loss of the last full epoch ``(T,)``.
        epoch_before: That of the one before ``(T,)``.
    """

    sums: Tensor
    counts: Tensor
    last_epoch: Tensor
    epoch_before: Tensor

    @classmethod
    def none_yet(cls, weights: Tensor) -> EpochMeans:
        """Before the first loss."""
        zeros = torch.zeros_like(weights)
        return cls(zeros, torch.zeros_like(weights, dtype=torch.int64), zeros.clone(), zeros.clone())

    def after(self, losses: Tensor, present: Tensor, epoch_steps: int) -> EpochMeans:
        """After one more loss of the tasks present."""
        sums = self.sums + torch.where(present, losses, 0.0)
        counts = self.counts + present
        ended = present & (counts % epoch_steps == 0)
        return EpochMeans(
            sums=torch.where(ended, 0.0, sums),
            counts=counts,
            last_epoch=torch.where(ended, sums / epoch_steps, self.last_epoch),
            epoch_before=torch.where(ended, self.last_epoch, self.epoch_before),
        )

    def comparable(self, epoch_steps: int) -> Tensor:
        """Which tasks have had two epochs ``(T,)``, bool."""
        return self.counts >= 2 * epoch_steps
