"""The losses that a caller hands in by task name, checked and stacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from equipoise.arguments import known_tasks
from equipoise.balancer.checks import check_vector, usable


class Losses(NamedTuple):
    """The losses of one call.

    Attributes:
        values: In task order ``(T,)``, in the precision of the weights or better; 0 for an absent task.
        present: Which tasks are present, in task order; None where all are.
        each: The loss of every task that is present, by name; empty where all were handed in as one tensor.
        constant: The first task whose loss carries no gradient; empty where there is none.
    """

    values: Tensor
    present: tuple[bool, ...] | None
    each: Mapping[str, Tensor]
    constant: str = ""


def parse(losses: Any, tasks: Sequence[str], weights: Tensor) -> Losses:
    """Check the losses, by all that needs no look at their values, and stack them.

    Raises:
        TypeError: They are not given by name, or one is neither a real floating-point tensor nor None.
        ValueError: A task is unknown or missing, a loss is not a scalar, or it lies on another device.
    """
    dtype, device = weights.dtype, weights.device
    if isinstance(losses, Tensor):
        check_vector(losses, tasks, device)
        return Losses(losses.to(torch.promote_types(losses.dtype, dtype)), None, {})
    if not isinstance(losses, Mapping):
        raise TypeError(f"losses must be a dict by task name; found {type(losses).__name__}")
    each: dict[str, Tensor] = {}
    constant, alike = "", True
    for task in tasks:
        loss = losses.get(task, losses)  # the dict itself is no loss
        if loss is None:
            continue
        plain = type(loss) is Tensor and loss.dtype == dtype and loss.layout == torch.strided
        if not plain or loss.dim() or loss.device != device:
            loss, alike = usable(task, loss, losses, device), False
            dtype = torch.promote_types(dtype, loss.dtype)
        if not (loss.requires_grad or constant):
            constant = task
        each[task] = loss
    if len(losses) != len(tasks):
        known_tasks("losses", losses, tasks)
    found, present = [*each.values()], None
    if len(each) < len(tasks):
        zero = torch.zeros((), dtype=dtype, device=device)
        found, present = [each.get(task, zero) for task in tasks], tuple(task in each for task in tasks)
    return Losses(torch.stack(found if alike else [loss.to(dtype) for loss in found]), present, each, constant)
