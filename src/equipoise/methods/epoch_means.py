"""The mean losses of a task's last two epochs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class EpochMeans(NamedTuple):
    """The state of a method that compares epochs, each counted in a task's own losses; all ``(T,)``.

    Attributes:
        running: The mean loss of the epoch that runs.
        counts: How many losses that is the mean of.
        epochs: How many epochs have ended.
        last_epoch: The mean loss of the last of them.
        epoch_before: That of the one before.
    """

    running: Tensor
    counts: Tensor
    epochs: Tensor
    last_epoch: Tensor
    epoch_before: Tensor

    @classmethod
    def zeros(cls, like: Tensor) -> EpochMeans:
        """Before the first loss."""
        return cls(*(torch.zeros_like(like) for _ in cls._fields))

    def after(self, losses: Tensor, epoch_steps: int) -> EpochMeans:
        """After one more loss of every task."""
        counts = self.counts + 1
        mean = self.running + (losses - self.running) / counts
        ended = counts >= epoch_steps
        running, counts = torch.where(ended, 0.0, mean), torch.where(ended, 0.0, counts)
        last = torch.where(ended, mean, self.last_epoch)
        before = torch.where(ended, self.last_epoch, self.epoch_before)
        return EpochMeans(running, counts, self.epochs + ended, last, before)

    @property
    def comparable(self) -> Tensor:
        """Which tasks have had two epochs ``(T,)``, bool."""
        return self.epochs >= 2
