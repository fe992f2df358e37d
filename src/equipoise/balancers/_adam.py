"""Adam on one number per task, as a pure function: a step that has to be undone leaves no trace."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Moments:
    """What Adam remembers, in the buffers ``adam_mean``, ``adam_square`` and ``adam_count`` of a balancer.

    Every entry has a step count of its own, so that one that starts late has its bias corrected from its own start.

    Attributes:
        mean: Running mean of the gradient ``(T,)``.
        square: Running mean of its square ``(T,)``.
        count: Steps that each entry has taken ``(T,)``.
    """

    mean: Tensor
    square: Tensor
    count: Tensor

    @classmethod
    def register(cls, balancer: nn.Module, weights: Tensor) -> None:
        """Give a balancer the buffers, as they are before the first step."""
        for name in ("adam_mean", "adam_square"):
            balancer.register_buffer(name, torch.zeros_like(weights))
        balancer.register_buffer("adam_count", torch.zeros_like(weights, dtype=torch.int64))

    @classmethod
    def of(cls, balancer: nn.Module) -> Moments:
        """Those that a balancer has."""
        return cls(*(getattr(balancer, f"adam_{name}") for name in ("mean", "square", "count")))

    def state(self) -> dict[str, Tensor]:
        """The new values of the buffers."""
        return {"adam_mean": self.mean, "adam_square": self.square, "adam_count": self.count}


def adam(
    gradient: Tensor,
    moments: Moments,
    active: Tensor,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: Tensor | float = 1e-8,
) -> tuple[Tensor, Moments]:
    """One step for the entries that are active; the others keep their state.

    Args:
        gradient: The gradient ``(T,)``.
        moments: What the steps before have left.
        active: Which entries take this step ``(T,)``, bool.
        lr: The learning rate.
        betas: The decay of the two running means.
        eps: Added to the root of the square; in the unit of the gradient.

    Returns:
        The change of every entry, and the moments after the step. An entry whose gradient has always been zero does not
        move.

    References:
        Kingma and Ba 2015, Adam, algorithm 1.
    """
    decay, decay_square = betas
    mean = torch.where(active, moments.mean.lerp(gradient, 1 - decay), moments.mean)
    square = torch.where(active, moments.square.lerp(gradient.square(), 1 - decay_square), moments.square)
    count = moments.count + active
    steps = count.clamp(min=1)
    root = (square / (1 - decay_square**steps)).sqrt() + eps
    change = torch.where(active & (square > 0), -lr * (mean / (1 - decay**steps)) / root, 0.0)
    return change, Moments(mean, square, count)


def check_adam(lr: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
    """Refuse what Adam cannot step with.

    Raises:
        ValueError: The rate is not positive and finite, or a decay does not lie in [0, 1).
    """
    if not (lr > 0 and isfinite(lr)):
        raise ValueError(f"lr must be positive and finite; found {lr}")
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas must lie in [0, 1); found {betas}")
