"""The losses that a caller hands in by task name, checked and stacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from equipoise.arguments import described, known_tasks, number


class Losses(NamedTuple):
    """The losses of one call.

    Attributes:
        values: In task order ``(T,)``, in the precision of the weights or better; 0 for an absent task.
        present: Which tasks are present, in task order; None where all are.
        each: The loss of every task that is present, by name; empty where all were handed in as one tensor.
    """

    values: Tensor
    present: tuple[bool, ...] | None
    each: Mapping[str, Tensor]


def parse(losses: Any, tasks: Sequence[str], weights: Tensor) -> Losses:
    """Check the losses, by all that needs no look at their values, and stack them.

    Raises:
        TypeError: They are not given by name, or one is neither a real floating-point tensor nor None.
        ValueError: A task is unknown or missing, a loss is not a scalar, or it lies on another device.
    """
    if isinstance(losses, Tensor):
        _check_vector(losses, tasks, weights.device)
        return Losses(losses.to(torch.promote_types(losses.dtype, weights.dtype)), None, {})
    if not isinstance(losses, Mapping):
        raise TypeError(f"losses must be a dict by task name; found {type(losses).__name__}")
    each: dict[str, Tensor] = {}
    alike = True
    for task in tasks:
        loss = losses.get(task, losses)  # the dict itself is no loss
        if loss is None:
            continue
        if type(loss) is not Tensor or loss.dim() or loss.device != weights.device or not _is_real(loss):
            loss = _checked(task, loss, losses, weights.device)
        alike = alike and loss.dtype == weights.dtype
        each[task] = loss
    if len(losses) != len(tasks):
        known_tasks("losses", losses, tasks)
    if len(each) == len(tasks) and alike:
        return Losses(torch.stack([*each.values()]), None, each)
    dtype = weights.dtype
    for loss in each.values():
        dtype = torch.promote_types(dtype, loss.dtype)
    zero = torch.zeros((), dtype=dtype, device=weights.device)
    values = torch.stack([each[task].to(dtype) if task in each else zero for task in tasks])
    present = tuple(task in each for task in tasks)
    return Losses(values, None if all(present) else present, each)


def check_gradients(losses: Losses) -> None:
    """Refuse, where some loss carries a gradient, one that carries none.

    Raises:
        ValueError: There is one; the message names the task.
    """
    for task, loss in losses.each.items():
        if not loss.requires_grad:
            raise ValueError(
                f"task {task!r}: its loss must carry a gradient; found a constant. Hand in None where the batch has no labels "
                "for the task, and look for a detach() or a number made into a tensor otherwise"
            )


def label_fractions(fractions: Any, losses: Losses, tasks: Sequence[str]) -> Tensor:
    """The label fractions ``(T,)``; 0 for an absent task.

    Raises:
        TypeError: They are not given by name, or one is not a number.
        ValueError: A task is unknown, one with a loss has no fraction that is positive and finite, or one without has another
            fraction than 0.
    """
    known_tasks("label_fractions", fractions, tasks)
    present = losses.present or (True,) * len(tasks)
    found = []
    for task, here in zip(tasks, present, strict=True):
        value = number(f"label_fractions: task {task!r}: its value", fractions.get(task, 0.0), "[0, inf)")
        if here != (value > 0):
            wanted = (
                "has a loss, so its fraction must be positive" if here else "has no loss, so its fraction must be 0"
            )
            raise ValueError(f"label_fractions: task {task!r} {wanted}; found {value}")
        found.append(value)
    values = losses.values
    return torch.tensor(found, dtype=values.dtype).to(
        values.device, non_blocking=True
    )  # without waiting for the device


def _checked(task: str, loss: Any, losses: Mapping[str, Any], device: torch.device) -> Tensor:
    """A loss that is not plainly right: one that can be used all the same, or an error."""
    if loss is losses:
        raise ValueError(f"task {task!r}: its loss is missing; hand in None if this batch has no labels for it")
    if not isinstance(loss, Tensor):
        raise TypeError(f"task {task!r}: a loss must be a tensor or None; found {type(loss).__name__}")
    if is_traceable_wrapper_subclass(loss):  # type: ignore[unreachable]
        raise TypeError(
            f"task {task!r}: a loss must be a plain tensor; found a {type(loss).__name__}. A DTensor gives one by full_tensor()"
        )
    if loss.is_nested or loss.dim() != 0:
        shape = "a nested tensor" if loss.is_nested else tuple(loss.shape)
        raise ValueError(f"task {task!r}: a loss must be a scalar, of shape (); found {shape}")
    if not _is_real(loss):
        raise TypeError(f"task {task!r}: a loss must be a real floating-point tensor; found {_kind(loss)}")
    if loss.device != device:
        remedy = "a meta tensor has no value" if loss.is_meta else f"call balancer.to({str(loss.device)!r})"
        raise ValueError(f"task {task!r}: its loss is on {loss.device}, the weights are on {device}; {remedy}")
    return loss.as_subclass(Tensor)


def _is_real(loss: Tensor) -> bool:
    """Whether it is of a dtype and layout that losses are summed in."""
    return loss.dtype in _REAL and loss.layout == torch.strided


def _kind(loss: Tensor) -> str:
    if loss.layout != torch.strided:
        return f"one of layout {loss.layout}: take loss.to_dense()"
    return f"{loss.dtype}, of less than 16 bits" if loss.is_floating_point() else f"{loss.dtype}"


_REAL = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _check_vector(losses: Tensor, tasks: Sequence[str], device: torch.device) -> None:
    if losses.shape != (len(tasks),):
        raise ValueError(
            f"losses must be a dict by task name, or a tensor of shape ({len(tasks)},) in task order; found {described(losses)}"
        )
    if not _is_real(losses):
        raise TypeError(f"losses must be a real floating-point tensor; found {_kind(losses)}")
    if losses.device != device:
        raise ValueError(
            f"the losses are on {losses.device}, the weights are on {device}; call balancer.to({str(losses.device)!r})"
        )
