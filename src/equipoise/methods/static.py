"""Equal weights: the plain sum of the losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

from torch import Tensor

from equipoise.balancers._balancer import Balancer, Step
from equipoise.balancers._given import positive_by_task
from equipoise.engine import Source


@final
class Equal(Balancer):
    """Every weight is 1.

    When to use:
        First, and as what everything else is compared with. Losses of one kind and one size leave little to balance.

    Args:
        tasks: The fork (or what `attach` or `PerLoss` give), or the names of the tasks.
        every: Gradient norms are measured for the log at each ``every``-th step; ``None``: never.

    Example:
        >>> import torch
        >>> balancer = Equal(("price", "risk"))
        >>> balancer({"price": torch.tensor(1.0), "risk": torch.tensor(2.0)})
        tensor(3.)
    """

    def __init__(self, tasks: Source | Sequence[str], *, every: int | None = None) -> None:
        super().__init__(tasks, every=every)

    def _update(self, step: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {}, {}


@final
class Static(Balancer):
    r"""Weights that are given and stay, scaled so that :math:`\sum_i w_i = T`.

    The scaling keeps the network's effective learning rate that of equal weights; only the ratios of the given weights
    matter.

    When to use:
        You know what the tasks are worth, or train again with the mean weights of a run: ``balancer.averaged()``.

    Args:
        tasks: The fork (or what `attach` or `PerLoss` give), or the names of the tasks.
        weights: A positive number for every task.
        every: Gradient norms are measured for the log at each ``every``-th step; ``None``: never.

    Raises:
        ValueError: A task is unknown or missing, or a weight is not positive and finite; the message names it.

    Example:
        >>> Static(("price", "risk"), {"price": 3.0, "risk": 1.0}).weights
        tensor([1.5000, 0.5000])
    """

    def __init__(
        self, tasks: Source | Sequence[str], weights: Mapping[str, float], *, every: int | None = None
    ) -> None:
        super().__init__(tasks, every=every)
        given = self.weights.new_tensor(positive_by_task("weights", weights, self.tasks))
        self.weights.copy_(given * len(self.tasks) / given.sum())

    def _update(self, step: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {}, {}
