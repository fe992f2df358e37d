"""Dynamic weight average (Liu, Johns and Davison 2019)."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from equipoise.arguments import ByTask, count, number
from equipoise.balancer import Balancer, Log, Step, Tasks
from equipoise.methods.epoch_means import EpochMeans


@final
class DWA(Balancer):
    r"""Weights from how fast each loss fell over the last epoch.

    .. math:: w_i = T \frac{\exp(r_i / \tau)}{\sum_j \exp(r_j / \tau)}, \qquad r_i = \frac{L_i(e - 1)}{L_i(e - 2)}

    where :math:`L_i(e)` is the mean loss of epoch e. :math:`\sum_i w_i = T`; a task that falls more slowly weighs more.

    When to use:
        Losses of a similar size that fall at different speeds, with epochs long enough for stable means. It does not
        correct for losses of different size.

    Args:
        epoch_steps: How many steps make an epoch, for instance ``len(loader)``.
        temperature: :math:`\tau`; the larger, the more equal the weights.
        initial_weights: The weights of the first two epochs; see `Balancer`. ``None``: 1.
        tasks, every, start, accumulate: See `Balancer`.

    Raises:
        TypeError, ValueError: A setting is of another type or out of its range.

    Differs from the paper:
        An epoch is counted in a task's own losses: where the task is absent or a step skipped, it ends later. A task
        keeps its weight until it has had two epochs, and while its mean loss in the earlier one is not positive; the
        paper sets :math:`r_i = 1` in the first two epochs, the same where no task is absent and weights start at 1.

    Example:
        >>> balancer = DWA(("slow", "fast"), epoch_steps=1)
        >>> for losses in ([1.0, 1.0], [1.0, 0.5]):
        ...     balancer(torch.tensor(losses, requires_grad=True)).backward()
        ...     balancer.step()
        >>> balancer.weights
        tensor([1.1244, 0.8756])

    References:
        Liu, Johns, Davison 2019, End-to-end multi-task learning with attention, equation 7.
    """

    state_type = EpochMeans

    def __init__(
        self,
        tasks: Tasks,
        *,
        epoch_steps: int,
        temperature: float = 2.0,
        every: int | None = None,
        start: int = 0,
        accumulate: bool = False,
        initial_weights: ByTask | str | None = None,
    ) -> None:
        super().__init__(tasks, every=every, start=start, accumulate=accumulate, initial_weights=initial_weights)
        self._epoch_steps = count("epoch_steps", epoch_steps)
        self._temperature = number("temperature", temperature, "(0, inf)")
        self.reset_parameters()

    def update(self, step: Step, state: EpochMeans) -> tuple[Tensor, EpochMeans, Log]:
        """One more loss for the epoch's mean, and the weights among the tasks that have had two epochs."""
        means = state.after(step.losses, self._epoch_steps)
        known = (means.epochs >= 2) & (means.epoch_before > 0)
        ratios = means.last_epoch / torch.where(known, means.epoch_before, 1.0)
        among = step.among(known)
        weights = among.in_proportion(among.softmax(ratios / self._temperature))
        return torch.where(known, weights, step.weights), means, {}
