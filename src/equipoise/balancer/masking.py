"""Absent tasks, and steps that are not finite: handled once, here and in the driver, and nowhere in a method."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import torch
from torch import Tensor


def reads_without_sync(tensor: Tensor) -> bool:
    """Whether the host reads a value of ``tensor`` without waiting for a device."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def nan_where_absent(values: Tensor, present: Tensor | None) -> Tensor:
    """``values`` ``(T,)`` as a log shows them: NaN for an absent task; ``present`` is None where there is none."""
    return values if present is None else values.masked_fill(~present, float("nan"))


def all_finite(values: Sequence[Tensor], on_host: bool) -> Tensor | bool:
    """Whether all numbers are finite: on the host by their sum, which is finite then unless it overflows."""
    alike = len({value.shape for value in values}) == 1
    joined = torch.stack([*values]) if alike else torch.cat([value.reshape(-1) for value in values])
    if not on_host:
        return torch.isfinite(joined).all()
    return isfinite(joined.sum().item()) or bool(torch.isfinite(joined).all())


def keep_where(keep: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """``old`` where ``keep`` ``(T,)`` says so, for a state with one entry per task; a state without entries is new."""
    if new.dim() == 0 or new.shape[-1] != keep.shape[0]:
        return new
    return torch.where(keep, old, new)
