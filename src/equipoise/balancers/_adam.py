"""Adam on one number per task, as a pure function: a step that has to be undone leaves no trace."""

from __future__ import annotations

import torch
from torch import Tensor


def adam(
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    count: Tensor,
    active: Tensor,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: Tensor | float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step for the entries that are active; the others keep their state.

    Every entry has a step count of its own, so that one that starts late has its bias corrected from its own start.

    Args:
        gradient: The gradient ``(T,)``.
        mean: Running mean of the gradient ``(T,)``.
        square: Running mean of its square ``(T,)``.
        count: Steps that each entry has taken ``(T,)``.
        active: Which entries take this step ``(T,)``, bool.
        lr: The learning rate.
        betas: The decay of the two running means.
        eps: Added to the root of the square; in the unit of the gradient.

    Returns:
        The change of every entry, and ``mean``, ``square``, ``count`` after the step. An entry whose gradient has always
        been zero does not move.

    References:
        Kingma and Ba 2015, Adam, algorithm 1.
    """
    decay, decay_square = betas
    gradient = torch.where(active, gradient, 0.0)
    mean = torch.where(active, decay * mean + (1 - decay) * gradient, mean)
    square = torch.where(active, decay_square * square + (1 - decay_square) * gradient.square(), square)
    count = count + active
    steps = count.clamp(min=1)
    root = (square / (1 - decay_square**steps)).sqrt() + eps
    moves = active & (square > 0)
    change = torch.where(moves, -lr * (mean / (1 - decay**steps)) / torch.where(moves, root, 1.0), 0.0)
    return change, mean, square, count
