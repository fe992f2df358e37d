"""What several processes know of the tasks, put together."""

from __future__ import annotations

import torch
from torch import Tensor

from equipoise.balancers._balancer import _mean_over_processes


def over_processes(values: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of ``values`` over the processes in which the task is present, and whether there is any."""
    total, count = _mean_over_processes(torch.stack([torch.where(present, values, 0.0), present.to(values.dtype)]))
    return total / torch.where(count != 0, count, 1.0), count != 0
