"""What several processes know of the tasks, put together."""

from __future__ import annotations

import torch
from torch import Tensor

from equipoise.engine import Processes


def over_processes(processes: Processes, values: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of ``values`` over the processes in which the task is present, and whether there is any."""
    total, count = processes.mean(torch.stack([torch.where(present, values, 0.0), present.to(values.dtype)]))
    return total / torch.where(count != 0, count, 1.0), count != 0
