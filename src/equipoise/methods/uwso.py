"""Soft optimal uncertainty weighting (Kirchdorfer, Elich, Kutsche et al. 2024)."""

from __future__ import annotations

from typing import final

from torch import Tensor

from equipoise.arguments import number
from equipoise.balancer import Balancer, NoState, Step, Tasks
from equipoise.methods.static import unchanged


@final
class UWSO(Balancer):
    r"""UW-SO: the softmax of the inverse losses, :math:`w = T\,\mathrm{softmax}(L^{-1} / \tau)`.

    Uncertainty weighting rests at inverse losses; this is a softened form of them that needs no training.

    When to use:
        Losses of a similar size, with a tuned temperature: an untuned one may put all weight on one loss.

    Args:
        temperature: :math:`\tau`, in the unit of an inverse loss, to be tuned to the losses: larger, more equal
            weights.
        tasks, every, start, accumulate: See `Balancer`; each micro-batch is weighted by its own losses.

    Raises:
        ValueError: ``temperature`` or a loss is not positive. On an accelerator a loss after a task's first is skipped.

    Differs from the paper:
        The weights sum to T instead of 1. The paper tunes the temperature for every problem; 1 is no recommendation.

    Example:
        >>> import torch
        >>> balancer = UWSO(("a", "b"))
        >>> balancer(torch.tensor([0.5, 1.0], requires_grad=True)).backward()
        >>> balancer.step()
        >>> balancer.weights
        tensor([1.4621, 0.5379])

    References:
        Kirchdorfer et al. 2024, Analytical uncertainty-based loss weighting in multi-task learning, equation 4.
    """

    positive_losses = weighs = True
    update = unchanged

    def __init__(
        self,
        tasks: Tasks,
        *,
        temperature: float = 1.0,
        every: int | None = None,
        start: int = 0,
        accumulate: bool = False,
    ) -> None:
        super().__init__(tasks, every=every, start=start, accumulate=accumulate)
        self._temperature = number("temperature", temperature, "(0, inf)")
        self.reset_parameters()

    def weigh(self, step: Step, state: NoState) -> Tensor:
        """The softmax of the inverse losses (Equation 4, times T)."""
        return step.in_proportion(step.softmax(1 / (step.losses * self._temperature)))
