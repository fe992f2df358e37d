"""Scale-invariant weighting: the sum of the losses' logarithms."""

from __future__ import annotations

from typing import final

from torch import Tensor

from equipoise.balancer import Balancer, NoState, Step, Tasks
from equipoise.methods.static import unchanged


@final
class SI(Balancer):
    r"""Weights :math:`w_i = 1 / L_i`, with the gradient of :math:`\sum_i \log L_i`: the unit of a loss does not matter.

    When to use:
        Positive losses over many orders of magnitude, each of which should fall by the same factor. Not for losses that
        come near zero: their weights explode.

    Args:
        tasks, every, start, accumulate: See `Balancer`; each micro-batch is weighted by its own losses.

    Raises:
        ValueError: A loss is not positive. On an accelerator only a task's first is refused; later the step is skipped.

    Differs from the paper:
        The total loss is T; its gradient is that of the sum of logarithms.

    Example:
        >>> import torch
        >>> balancer = SI(("a", "b"))
        >>> balancer(torch.tensor([0.5, 4.0], requires_grad=True)).backward()
        >>> balancer.step()
        >>> balancer.weights
        tensor([2.0000, 0.2500])

    References:
        Navon et al. 2022, Multi-task learning as a bargaining game, section 5 (equation number not verified).
    """

    positive_losses = weighs = True
    update = unchanged

    def __init__(self, tasks: Tasks, *, every: int | None = None, start: int = 0, accumulate: bool = False) -> None:
        super().__init__(tasks, every=every, start=start, accumulate=accumulate)
        self.reset_parameters()

    def weigh(self, step: Step, state: NoState) -> Tensor:
        r""":math:`w_i = \partial \sum_j \log L_j / \partial L_i = 1 / L_i`."""
        return 1 / step.losses
