"""SoftAdapt (Heydari, Thompson and Mehmood 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import final

import torch
from torch import Tensor

from equipoise.balancers._balancer import Step
from equipoise.balancers._epoch_means import EpochMeans
from equipoise.balancers._given import check_count
from equipoise.balancers._positive_losses import PositiveLossBalancer
from equipoise.balancers._shares import in_proportion, softmax
from equipoise.engine import Source


def normalized_slopes(slopes: Tensor, known: Tensor) -> Tensor:
    r""":math:`s_i / (\sum_j |s_j| + 10^{-8})` over the tasks whose slope is known."""
    return slopes / (torch.where(known, slopes.abs(), 0.0).sum() + 1e-8)


def softadapt_shares(slopes: Tensor, beta: float, known: Tensor) -> Tensor:
    r""":math:`\exp(\beta s_i) / \sum_j \exp(\beta s_j)` over the tasks whose slope is known."""
    return softmax(beta * slopes, known)


@final
class SoftAdapt(PositiveLossBalancer):
    r"""Weights from the slopes of the losses: with :math:`\beta > 0`, the task that falls least weighs most.

    .. math:: w_i = T \frac{\exp(\beta s_i)}{\sum_j \exp(\beta s_j)}, \qquad s_i = L_i(e) - L_i(e - 1)

    Normalised, the slopes are divided by the sum of their absolute values. Loss-weighted,
    :math:`w_i \propto L_i(e) \exp(\beta s_i)`. The two can be combined.

    When to use:
        Few terms of one objective, where those that rise or stall shall gain weight at once. Slopes of noisy batches
        are noise: give it ``epoch_steps``.

    Args:
        tasks: The fork (or what `attach` or `PerLoss` give), or the names of the tasks.
        beta: How much the slopes say; negative to favour the task that falls most.
        epoch_steps: The losses that are compared, :math:`L_i(e)`, are means over this many of a task's losses.
        normalize: Whether the slopes are normalised. Without, beta is in the unit of an inverse loss, and has to be tuned to
            the losses.
        loss_weighted: Whether the losses themselves are a factor.
        every: Gradient norms are measured for the log at each ``every``-th step; ``None``: never.
        start: The number of steps before the weights begin to move.

    Raises:
        ValueError: ``beta`` is not finite, or ``epoch_steps`` not a positive integer; or a loss is not positive, and the
            message names the task. On an accelerator only a task's first loss is looked at, and later such a step is skipped
            and counted.

    Differs from the paper:
        The weights sum to T instead of 1, which keeps the network's effective learning rate that of equal weights. The slope
        is the difference of two values; the authors' package offers differences of higher order. It divides normalised
        slopes by their plain sum, and multiplies with the mean loss of the values compared; the first release took the sum
        of absolute values and the last loss, as here. A task keeps its weight until its slope is known.

    Example:
        >>> SoftAdapt(("reconstruction", "prior"), epoch_steps=10).weights
        tensor([1., 1.])

    References:
        Heydari, Thompson, Mehmood 2019, SoftAdapt: Techniques for adaptive loss weighting of neural networks with multi-part
        loss functions, section 3.1 (equation number not verified).
    """

    sums: Tensor
    counts: Tensor
    last_epoch: Tensor
    epoch_before: Tensor

    def __init__(
        self,
        tasks: Source | Sequence[str],
        *,
        beta: float = 0.1,
        epoch_steps: int = 1,
        normalize: bool = True,
        loss_weighted: bool = False,
        every: int | None = None,
        start: int = 0,
    ) -> None:
        super().__init__(tasks, every=every, start=start)
        if not isfinite(beta):
            raise ValueError(f"beta must be finite; found {beta}")
        check_count("epoch_steps", epoch_steps)
        self._beta, self._epoch_steps = beta, epoch_steps
        self._normalize, self._loss_weighted = normalize, loss_weighted
        for name, value in vars(EpochMeans.none_yet(self.weights)).items():
            self.register_buffer(name, value)

    def _update(self, step: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        so_far = EpochMeans(self.sums, self.counts, self.last_epoch, self.epoch_before)
        means = so_far.after(step.losses, step.present, self._epoch_steps)
        known = step.present & means.comparable(self._epoch_steps)
        slopes = means.last_epoch - means.epoch_before
        slopes = normalized_slopes(slopes, known) if self._normalize else slopes
        shares = softadapt_shares(slopes, self._beta, known)
        shares = means.last_epoch * shares if self._loss_weighted else shares
        return {**vars(means), "weights": in_proportion(shares, known, self.weights)}, {}
