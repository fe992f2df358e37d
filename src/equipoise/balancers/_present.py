"""What is said of the tasks that take part."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_over(values: Tensor, present: Tensor) -> Tensor:
    """The mean of ``values`` ``(T,)`` over the tasks present, whatever stands at the others."""
    return torch.where(present, values, 0.0).sum() / present.sum()


def is_free_to_read(tensor: Tensor) -> bool:
    """Whether the host can look at a value without waiting for a device, so that a short way may be taken."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def shown(values: Tensor, present: Tensor) -> Tensor:
    """What a log shows of ``values`` ``(T,)``: NaN for absent tasks."""
    return values.masked_fill(~present, float("nan"))
