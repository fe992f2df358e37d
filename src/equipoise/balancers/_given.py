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
    if not losses.keys() <= known:
        unknown = next(task for task in losses if task not in known)
        raise ValueError(f"unknown task {unknown!r}: the tasks are {', '.join(map(repr, tasks))}")
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


def check_vector(losses: Tensor, tasks: Sequence[str], device: torch.device) -> None:
    """Check losses that are handed in as one tensor.

    Raises:
        ValueError: It has not one loss for every task, or lies on another device.
    """
    if losses.shape != (len(tasks),):
        raise ValueError(
            f"losses must be a dict by task name, or a tensor of shape ({len(tasks)},) in task order; found a tensor of shape "
            f"{tuple(losses.shape)}"
        )
    if losses.device != device:
        raise ValueError(
            f"the losses are on {losses.device}, the weights are on {device}; call balancer.to({str(losses.device)!r})"
        )


def is_idle(losses: Mapping[str, Tensor | None] | Tensor) -> bool:
    """Whether there is no loss at all, as on a process without labels."""
    return not isinstance(losses, Tensor) and all(loss is None for loss in losses.values())


def stacked(losses: Mapping[str, Tensor | None], like: Tensor) -> Tensor:
    """The losses ``(T,)`` in the precision of ``like`` or better, zero for an absent task."""
    here = [loss for loss in losses.values() if loss is not None]
    if len(here) == len(losses) and all(loss.dtype == like.dtype for loss in here):
        return torch.stack(here)
    dtype = like.dtype
    for loss in here:
        dtype = torch.promote_types(dtype, loss.dtype)
    zero = torch.zeros((), dtype=dtype, device=like.device)
    return torch.stack([zero if loss is None else loss.to(dtype) for loss in losses.values()])


def marked_empty(total: Tensor) -> Tensor:
    """Mark a total that no loss is in, so that a balancer above takes the group of its tasks for absent.

    It cannot be None: where processes share out a batch, the group may have labels on another of them, and this one has to
    take part in the step.
    """
    total.equipoise_empty = True  # type: ignore[attr-defined]
    return total


def is_empty(loss: Tensor | None) -> bool:
    """Whether this is a total that no loss is in."""
    return getattr(loss, "equipoise_empty", False)


def shares_by_task(shares: Mapping[str, float], given: Mapping[str, Tensor | None], like: Tensor) -> Tensor:
    """The shares in task order ``(T,)``, checked; 1 for a task without loss.

    Raises:
        ValueError: A task is unknown, one with a loss has no share that is positive and finite, or one without has another
            share than 0.
    """
    check_known("shares", shares, tuple(given))
    numbers = dict.fromkeys(given, 1.0)
    for task, loss in given.items():
        share = shares.get(task, 0.0)
        if loss is None:
            if share != 0:
                raise ValueError(f"shares: task {task!r} has no loss, so its share must be 0; found {share}")
        elif not 0 < share < float("inf"):
            raise ValueError(
                f"shares: task {task!r} has a loss, so its share must be positive and finite; found {share}"
            )
        else:
            numbers[task] = share
    # From the host without waiting for the device.
    return torch.tensor([*numbers.values()], dtype=like.dtype).to(like.device, non_blocking=True)


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
