"""What a caller hands in by task name, checked: every error names the task, what was wanted and what was found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from equipoise.engine import Source


def losses_by_task(losses: object, tasks: Sequence[str], device: torch.device) -> dict[str, Tensor | None]:
    """The losses in task order, checked for everything that needs no look at their values.

    Raises:
        TypeError: They are not given by name, or one is neither a tensor nor None.
        ValueError: A task is unknown or missing, a loss is not a scalar, or it lies on another device.
    """
    if not isinstance(losses, Mapping):
        raise TypeError(f"losses must be a dict by task name; found {type(losses).__name__}")
    known = set(tasks)  # as a tuple it would be searched T times, in every step
    unknown = [task for task in losses if task not in known]
    if unknown:
        raise ValueError(f"unknown task {unknown[0]!r}: the tasks are {', '.join(map(repr, tasks))}")
    for task in tasks:
        if task not in losses:
            raise ValueError(f"task {task!r}: its loss is missing; hand in None if this batch has no labels for it")
        loss = losses[task]
        if loss is None:
            continue
        if not isinstance(loss, Tensor):
            raise TypeError(f"task {task!r}: a loss must be a tensor or None; found {type(loss).__name__}")
        if loss.dim() != 0:
            raise ValueError(f"task {task!r}: a loss must be a scalar, of shape (); found {tuple(loss.shape)}")
        if loss.device != device:
            raise ValueError(
                f"task {task!r}: its loss is on {loss.device}, the weights are on {device}; "
                f"call balancer.to({str(loss.device)!r})"
            )
    return {task: losses[task] for task in tasks}


def stacked(losses: Mapping[str, Tensor | None], like: Tensor) -> Tensor:
    """The losses ``(T,)`` in the precision of ``like`` or better, zero for an absent task."""
    dtype = like.dtype
    for loss in losses.values():
        dtype = dtype if loss is None else torch.promote_types(dtype, loss.dtype)
    zero = torch.zeros((), dtype=dtype, device=like.device)
    return torch.stack([zero if loss is None else loss.to(dtype) for loss in losses.values()])


def positive_by_task(name: str, values: Mapping[str, float], tasks: Sequence[str]) -> list[float]:
    """Positive numbers given by task name, in task order.

    Raises:
        ValueError: A task is unknown or missing, or a number is not positive and finite.
    """
    check_known(name, values, tasks)
    for task in tasks:
        if task not in values:
            raise ValueError(f"{name}: task {task!r} is missing")
        if not 0 < values[task] < float("inf"):
            raise ValueError(f"{name}: task {task!r} must have a positive, finite number; found {values[task]}")
    return [values[task] for task in tasks]


def check_known(name: str, given: Iterable[str], tasks: Sequence[str]) -> None:
    """Refuse a name that is no task's.

    Raises:
        ValueError: There is one; the message names it and the setting.
    """
    unknown = [task for task in given if task not in tasks]
    if unknown:
        raise ValueError(f"{name}: unknown task {unknown[0]!r}; the tasks are {', '.join(map(repr, tasks))}")


def check_source(method: str, fork: object) -> None:
    """Refuse names where gradients are to be measured.

    Raises:
        TypeError: ``fork`` measures nothing; the message names the method.
    """
    if not isinstance(fork, Source):
        raise TypeError(f"{method} needs a Fork, or what attach or PerLoss give; found {type(fork).__name__}")


def check_count(name: str, value: int) -> None:
    """Refuse what is not a positive integer.

    Raises:
        ValueError: It is not; the message names the setting.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive integer; found {value!r}")
