"""Aliases that tell, in PyTorch's own error, which head works in place on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def named_alias(task: str, alias: Tensor) -> Tensor:
    """The alias under a name that tells, in PyTorch's own error, which head works in place, and the remedy.

    Until a fork has been checked its aliases bear such names; a head that works in place does so in its first forward pass.
    """
    text = (
        f"[the features of task {task!r}; its head must not work in place on them: use inplace=False or clone() first]"
    )
    named: type[torch.autograd.Function] = type(text, (_NamedAlias,), {})
    return named.apply(alias)  # type: ignore[no-any-return]


class _NamedAlias(torch.autograd.Function):
    """An identity whose name PyTorch prints when somebody writes over its output."""

    @staticmethod
    def forward(ctx: Any, alias: Tensor) -> Tensor:
        return alias.view_as(alias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient
