"""Weights from the variances of the losses as they come."""

from __future__ import annotations

from typing import NamedTuple, final

import torch
from torch import Tensor

from equipoise.arguments import SMALLEST, ByTask, number
from equipoise.balancer import Balancer, Log, Step, Tasks


class State(NamedTuple):
    """The running means and variances of the losses, and the number of losses so far; each ``(T,)``."""

    means: Tensor
    variances: Tensor
    counts: Tensor


def running_variance(losses: Tensor, state: State, decay: float) -> State:
    """The statistics with one more loss of each task."""
    counts = state.counts + 1
    rate = (1 / counts).clamp(min=1 - decay)
    difference = losses - state.means
    variances = (1 - rate) * (state.variances + rate * difference.square())
    return State(state.means + rate * difference, variances, counts)


@final
class InverseLossVariance(Balancer):
    r"""Weights :math:`w_i \propto 1 / \mathrm{Var}[L_i]` of the losses so far, with :math:`\sum_i w_i = T`.

    A task whose loss scatters over the batches, or still falls, weighs less. Mean and variance are running ones:

    .. math:: \mu \leftarrow \mu + a\,(L - \mu), \qquad \sigma^2 \leftarrow (1 - a)(\sigma^2 + a\,(L - \mu)^2)

    with the step :math:`a = \max(1 - \mathrm{decay}, 1 / n)` at a task's n-th loss: over its first losses, and with a
    decay of 1 over all, they are the plain mean and variance. Ten times the loss, a hundredth of the weight.

    When to use:
        Losses that scatter differently over the batches. A loss that still falls counts as scattered and weighs little,
        so it is not for tasks that start at different times.

    Args:
        decay: How much of the running values remains at each step, in (0, 1].
        initial_weights: The weights until the variances are known; see `Balancer`. ``None``: 1.
        tasks, every, start, accumulate: See `Balancer`.

    Raises:
        TypeError, ValueError: A setting is of another type or out of its range.

    Differs from the paper:
        There is none. A task whose loss has not varied yet, or by less than about 1e-19, the square of which vanishes
        in float32, keeps its weight.

    Example:
        >>> InverseLossVariance(("price", "risk"), decay=0.99).weights
        tensor([1., 1.])

    References:
        Welford 1962, Note on a method for calculating corrected sums of squares and products, for the running variance.
    """

    state_type = State

    def __init__(
        self,
        tasks: Tasks,
        *,
        decay: float = 0.99,
        initial_weights: ByTask | str | None = None,
        every: int | None = None,
        start: int = 0,
        accumulate: bool = False,
    ) -> None:
        super().__init__(tasks, every=every, start=start, accumulate=accumulate, initial_weights=initial_weights)
        self._decay = number("decay", decay, "(0, 1]")
        self.reset_parameters()

    def update(self, step: Step, state: State) -> tuple[Tensor, State, Log]:
        """The variances with this step's losses, and the weights from them."""
        state = running_variance(step.losses, state, self._decay)
        known = state.variances >= SMALLEST
        weights = step.among(known).in_proportion(1 / torch.where(known, state.variances, 1.0))
        return torch.where(known, weights, step.weights), state, {}
