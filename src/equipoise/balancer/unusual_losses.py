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
    _check_kind(f"task {task!r}: a loss", f"task {task!r}: its loss is", loss, device)
    return loss.as_subclass(Tensor)


def check_vector(losses: Tensor, tasks: Sequence[str], device: torch.device) -> None:
    """Refuse any tensor but a vector of losses."""
    if losses.shape != (len(tasks),):
        raise ValueError(
            f"losses must be a dict by task name, or a tensor of shape ({len(tasks)},) in task order; found {described(losses)}"
        )
    _check_kind("losses", "the losses are", losses, device)


def _check_kind(name: str, subject: str, loss: Tensor, device: torch.device) -> None:
    """Refuse a dtype or layout that losses are not summed in, and another device; messages begin with these words."""
    if loss.dtype not in _REAL or loss.layout != torch.strided:
        found = f"{loss.dtype}, of less than 16 bits" if loss.is_floating_point() else f"{loss.dtype}"
        found = found if loss.layout == torch.strided else f"one of layout {loss.layout}: take loss.to_dense()"
        raise TypeError(f"{name} must be a real floating-point tensor; found {found}")
    if loss.device != device:
        remedy = "a meta tensor has no value" if loss.is_meta else f"call balancer.to({str(loss.device)!r})"
        raise ValueError(f"{subject} on {loss.device}, the weights are on {device}; {remedy}")


_REAL = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
