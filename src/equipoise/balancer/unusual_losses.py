"""Losses that are not plain scalars in the precision of the weights: used all the same, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from equipoise.arguments import described


def usable(task: str, loss: Any, losses: Mapping[str, Any], device: torch.device) -> Tensor:
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


def check_vector(losses: Tensor, tasks: Sequence[str], device: torch.device) -> None:
    """Refuse what is no vector of losses."""
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
