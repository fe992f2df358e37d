"""The mean losses of a task's last two epochs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class EpochMeans(NamedTuple):
    """The mean of the running epoch's ``counts`` losses, the epochs ended, and the means of the last two; all ``(T,)``."""

    running: Tensor
    counts: Tensor
    epochs: Tensor
    last_epoch: Tensor
    epoch_before: Tensor

    def after(self, losses: Tensor, epoch_steps: int) -> EpochMeans:
        """After one more loss of every task: an epoch is counted in a task's own losses."""
        counts = self.counts + 1
        mean = self.running + (losses - self.running) / counts
        ended = counts >= epoch_steps
        running, counts = torch.where(ended, 0.0, mean), torch.where(ended, 0.0, counts)
        last = torch.where(ended, mean, self.last_epoch)
        before = torch.where(ended, self.last_epoch, self.epoch_before)
        return EpochMeans(running, counts, self.epochs + ended, last, before)
