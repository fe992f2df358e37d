"""Adam on one number per task, as a pure function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from equipoise.arguments import described, number


def adam(
    gradient: Tensor, state: Any, *, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: Tensor | float = 1e-8
) -> tuple[Tensor, Any]:
    """One step: the change of every entry, and the state after it (Kingma and Ba 2015, Adam, Algorithm 1).

    Args:
        gradient: The gradient ``(T,)``.
        state: A state with the fields ``adam_mean``, ``adam_square`` and ``adam_count`` ``(T,)``, zeros at the start.
            The count is each entry's own, so that its bias is corrected from its own start.
        lr: The learning rate.
        betas: The decay of the two running means.
        eps: Added to the root of the square; in the unit of the gradient. Where it is 0, an entry whose gradient has
            always been zero does not move.
    """
    decay, decay_square = betas
    count = state.adam_count + 1
    mean = state.adam_mean.lerp(gradient, 1 - decay)
    square = state.adam_square.lerp(gradient.square(), 1 - decay_square)
    root = (square / torch.rsub(torch.pow(decay_square, count), 1)).sqrt() + eps
    change = mean / ((torch.pow(decay, count) - 1) * root) * lr
    return change, state._replace(adam_mean=mean, adam_square=square, adam_count=count)


def check_betas(betas: Any) -> tuple[float, float]:
    """The two decay rates, which must be a pair of numbers in [0, 1)."""
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise TypeError(f"betas must be two numbers; found {described(betas)}")
    first, second = (number("betas", beta, "[0, 1)") for beta in betas)
    return first, second
