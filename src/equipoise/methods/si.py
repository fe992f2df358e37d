"""Scale-invariant weighting: the sum of the losses' logarithms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor

from equipoise.balancers._current_losses import CurrentLossBalancer
from equipoise.engine import Source


def si_weights(losses: Tensor) -> Tensor:
    r""":math:`w_i = \partial \sum_j \log L_j / \partial L_i = 1 / L_i`."""
    return 1 / losses


@final
class SI(CurrentLossBalancer):
    r"""Weights :math:`w_i = 1 / L_i`, with the gradient of :math:`\sum_i \log L_i`: the unit of a loss does not matter.

    When to use:
        Positive losses over many orders of magnitude, of which each shall fall by the same factor. Not for losses that
        come near zero: their weights explode.

    Args:
        tasks: The fork (or what `attach` or `PerLoss` give), or the names of the tasks.
        every: Gradient norms are measured for the log at each ``every``-th step; ``None``: never.
        start: The number of steps before the weights begin to move.

    Raises:
        ValueError: A loss is not positive; the message names the task. On an accelerator only a task's first loss is looked
            at, and later such a step is skipped and counted.

    Differs from the paper:
        The total loss is T; its gradient is that of the sum of logarithms. The weights grow without bound as losses fall,
        as published.

    Example:
        >>> import torch
        >>> balancer = SI(("a", "b"))
        >>> balancer({"a": torch.tensor(0.5, requires_grad=True), "b": torch.tensor(4.0)}).backward()
        >>> balancer.step()
        >>> balancer.weights
        tensor([2.0000, 0.2500])

    References:
        Navon et al. 2022, Multi-task learning as a bargaining game, section 5: the scale-invariant baseline
        (equation number not verified).
    """

    def __init__(self, tasks: Source | Sequence[str], *, every: int | None = None, start: int = 0) -> None:
        super().__init__(tasks, every=every, start=start)

    def _weights_of(self, losses: Tensor, present: Tensor) -> Tensor:
        return si_weights(losses)
