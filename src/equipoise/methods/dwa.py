"""Dynamic weight average (Liu, Johns and Davison 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from equipoise.balancers._balancer import Balancer, Step
from equipoise.balancers._epoch_means import EpochMeans
from equipoise.balancers._given import check_count
from equipoise.balancers._shares import in_proportion, softmax
from equipoise.engine import Source


def dwa_shares(ratios: Tensor, temperature: float, present: Tensor) -> Tensor:
    r""":math:`\exp(r_i / \tau) / \sum_j \exp(r_j / \tau)` (Equation 7, without the factor T)."""
    return softmax(ratios / temperature, present)


@final
class DWA(Balancer):
    r"""Weights from how fast each loss fell over the last epoch.

    .. math:: w_i = T \frac{\exp(r_i / \tau)}{\sum_j \exp(r_j / \tau)}, \qquad r_i = \frac{L_i(e - 1)}{L_i(e - 2)}

    where :math:`L_i(e)` is the mean loss of epoch e. :math:`\sum_i w_i = T`; a task that falls more slowly weighs more.

    When to use:
        Losses of a similar size that fall at different speeds, with epochs long enough for means that say something. It
        does nothing about losses of different size.

    Args:
        tasks: The fork (or what `attach` or `PerLoss` give), or the names of the tasks.
        epoch_steps: How many steps make an epoch, for instance ``len(loader)``.
        temperature: :math:`\tau`; the larger, the more equal the weights.
        every: Gradient norms are measured for the log at each ``every``-th step; ``None``: never.
        start: The number of steps before the weights begin to move.

    Raises:
        ValueError: ``epoch_steps`` is not a positive integer, or ``temperature`` not positive.

    Differs from the paper:
        An epoch is counted in a task's own losses: a task without labels in every batch, or a step that was skipped, ends
        its epoch later. Until a task has had two epochs, and where its mean loss was not positive, :math:`r_i = 1`; the paper
        says so of the first two epochs.

    Example:
        >>> DWA(("price", "risk"), epoch_steps=100).weights
        tensor([1., 1.])

    References:
        Liu, Johns, Davison 2019, End-to-end multi-task learning with attention, equation 7.
    """

    sums: Tensor
    counts: Tensor
    last_epoch: Tensor
    epoch_before: Tensor

    def __init__(
        self,
        tasks: Source | Sequence[str],
        *,
        epoch_steps: int,
        temperature: float = 2.0,
        every: int | None = None,
        start: int = 0,
    ) -> None:
        super().__init__(tasks, every=every, start=start)
        check_count("epoch_steps", epoch_steps)
        if not temperature > 0:
            raise ValueError(f"temperature must be positive; found {temperature}")
        self._epoch_steps, self._temperature = epoch_steps, temperature
        for name, value in vars(EpochMeans.none_yet(self.weights)).items():
            self.register_buffer(name, value)

    def _update(self, step: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        so_far = EpochMeans(self.sums, self.counts, self.last_epoch, self.epoch_before)
        means = so_far.after(step.losses, step.present, self._epoch_steps)
        ratios = torch.where(means.epoch_before > 0, means.last_epoch / means.epoch_before, 1.0)
        shares = dwa_shares(ratios, self._temperature, step.present)
        return {**vars(means), "weights": in_proportion(shares, step.present, self.weights)}, {}
