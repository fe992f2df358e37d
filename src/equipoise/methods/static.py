"""Weights that never move: equal ones, and those that are given."""

from __future__ import annotations

from statistics import fmean
from typing import final

from torch import Tensor

from equipoise.arguments import ByTask, numbers_by_task
from equipoise.balancer import Balancer, Log, NoState, Step, Tasks


def unchanged(self: Balancer, step: Step, state: NoState) -> tuple[Tensor, NoState, Log]:
    """The `update` of a method without state that keeps the weights of the step."""
    return step.weights, state, {}


@final
class Equal(Balancer):
    """Every weight is 1.

    When to use:
        First, on standardised targets, and as the baseline of every comparison. Losses of the same kind and size
        leave little to balance.

    Args:
        tasks, every, accumulate: See `Balancer`.

    Example:
        >>> import torch
        >>> balancer = Equal(("price", "risk"))
        >>> balancer({"price": torch.tensor(1.0), "risk": torch.tensor(2.0)})
        tensor(3.)
    """

    update = unchanged

    def __init__(self, tasks: Tasks, *, every: int | None = None, accumulate: bool = False) -> None:
        super().__init__(tasks, every=every, accumulate=accumulate)
        self.reset_parameters()


@final
class Static(Balancer):
    r"""Weights that are given and stay, scaled so that :math:`\sum_i w_i = T`.

    The scaling keeps the effective learning rate that of equal weights; only the ratios of the given weights matter.

    When to use:
        You know how much each task matters, or train again with the mean weights of a run: ``balancer.averaged()``. For
        squared errors on targets that were not standardised, ``Static(tasks, {task: 1 / variance, ...})`` weights the
        losses as if the targets had unit variance.

    Args:
        weights: A positive number for every task.
        tasks, every, accumulate: See `Balancer`.

    Raises:
        TypeError, ValueError: A task is unknown or missing, or a weight is not a positive number; the message names it.

    Example:
        >>> Static(("price", "risk"), {"price": 3.0, "risk": 1.0}).weights
        tensor([1.5000, 0.5000])
    """

    update = unchanged

    def __init__(self, tasks: Tasks, weights: ByTask, *, every: int | None = None, accumulate: bool = False) -> None:
        super().__init__(tasks, every=every, accumulate=accumulate)
        self._weights = numbers_by_task("weights", weights, self.tasks)
        self.reset_parameters()

    def init_state(self, weights: Tensor) -> tuple[Tensor, NoState]:
        """The given weights."""
        mean = fmean(self._weights)
        return weights.new_tensor([weight / mean for weight in self._weights]), NoState()
