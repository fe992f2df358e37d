"""Soft optimal uncertainty weighting (Kirchdorfer, Elich, Kutsche et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import final

from torch import Tensor

from equipoise.balancers._current_losses import CurrentLossBalancer
from equipoise.balancers._shares import in_proportion, softmax
from equipoise.engine import Source


def uwso_shares(losses: Tensor, temperature: float, present: Tensor) -> Tensor:
    r""":math:`\mathrm{softmax}(L_i^{-1} / \tau)` over the tasks present."""
    return softmax(1 / (losses * temperature), present)


@final
class UWSO(CurrentLossBalancer):
    r"""UW-SO: the softmax of the inverse losses, :math:`w = T\,\mathrm{softmax}(L^{-1} / \tau)`.

    The weights at which uncertainty weighting is at rest are inverse losses; this is a softened form of them that needs no
    training. The losses enter as constants.

    When to use:
        Losses of a similar size, with a search over the temperature: without one it may well put all weight on the
        smallest loss.

    Args:
        tasks: The fork (or what `attach` or `PerLoss` give), or the names of the tasks.
        temperature: :math:`\tau`, in the unit of an inverse loss: it has to be tuned to the losses. The larger, the more
            equal the weights.
        every: Gradient norms are measured for the log at each ``every``-th step; ``None``: never.
        start: The number of steps before the weights begin to move.

    Raises:
        ValueError: ``temperature`` is not positive and finite; or a loss is not positive, and the message names the task. On
            an accelerator only a task's first loss is looked at, and later such a step is skipped and counted.

    Differs from the paper:
        The weights sum to T instead of 1, which keeps the network's effective learning rate that of equal weights. The paper
        tunes the temperature for every problem; 1 is no recommendation.

    Example:
        >>> import torch
        >>> balancer = UWSO(("a", "b"))
        >>> balancer({"a": torch.tensor(0.5, requires_grad=True), "b": torch.tensor(1.0)}).backward()
        >>> balancer.step()
        >>> balancer.weights
        tensor([1.4621, 0.5379])

    References:
        Kirchdorfer, Elich, Kutsche, Stuckenschmidt, Schott, Köhler 2024, Analytical uncertainty-based loss weighting in
        multi-task learning, equation 4.
    """

    def __init__(
        self, tasks: Source | Sequence[str], *, temperature: float = 1.0, every: int | None = None, start: int = 0
    ) -> None:
        super().__init__(tasks, every=every, start=start)
        if not (temperature > 0 and isfinite(temperature)):
            raise ValueError(f"temperature must be positive and finite; found {temperature}")
        self._temperature = temperature

    def _weights_of(self, losses: Tensor, present: Tensor) -> Tensor:
        return in_proportion(uwso_shares(losses, self._temperature, present), present, self.weights)
