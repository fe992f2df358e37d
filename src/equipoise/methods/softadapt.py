"""SoftAdapt (Heydari, Thompson and Mehmood 2019)."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from equipoise.arguments import ByTask, count, flag, number
from equipoise.balancer import Balancer, Log, Step, Tasks
from equipoise.methods.epoch_means import EpochMeans


@final
class SoftAdapt(Balancer):
    r"""Weights from the slopes of the losses: with :math:`\beta > 0`, the loss that falls least weighs most.

    .. math:: w_i = T \frac{\exp(\beta s_i)}{\sum_j \exp(\beta s_j)}, \qquad s_i = L_i(e) - L_i(e - 1)

    Normalised, the slopes are divided by the sum of their absolute values. Loss-weighted,
    :math:`w_i \propto L_i(e) \exp(\beta s_i)`. The two can be combined.

    When to use:
        Few terms of one objective, where those that rise or stall should gain weight at once. With noisy batches
        the slopes are noise: set ``epoch_steps``.

    Args:
        beta: How much the slopes say; negative to favour the task that falls most.
        epoch_steps: The losses that are compared, :math:`L_i(e)`, are means over this many of a task's losses.
        normalize: Whether the slopes are normalised. Without, beta has the unit of an inverse loss and must be tuned.
        loss_weighted: Whether the losses themselves are a factor.
        initial_weights: The weights of the first two epochs; see `Balancer`. ``None``: 1.
        tasks, every, start, accumulate: See `Balancer`.

    Raises:
        ValueError: A setting is out of its range; or, with ``loss_weighted``, a loss is not positive.

    Differs from the paper:
        The weights sum to T throughout; in the authors' package they start at 1 each and then sum to 1. The slope is
        the difference of two values; the package offers higher orders. It divides normalised slopes by their plain sum,
        and multiplies with the mean loss of the values compared; its first release did as here.

    Example:
        >>> balancer = SoftAdapt(("stuck", "falling"), beta=1.0)
        >>> for losses in ([1.0, 1.0], [1.0, 0.5]):
        ...     balancer(torch.tensor(losses, requires_grad=True)).backward()
        ...     balancer.step()
        >>> balancer.weights
        tensor([1.4621, 0.5379])

    References:
        Heydari, Thompson, Mehmood 2019, SoftAdapt: Techniques for adaptive loss weighting of neural networks with
        multi-part loss functions, section 3.1 (equation number not verified).
    """

    state_type = EpochMeans

    def __init__(
        self,
        tasks: Tasks,
        *,
        beta: float = 0.1,
        epoch_steps: int = 1,
        normalize: bool = True,
        loss_weighted: bool = False,
        every: int | None = None,
        start: int = 0,
        accumulate: bool = False,
        initial_weights: ByTask | str | None = None,
    ) -> None:
        super().__init__(tasks, every=every, start=start, accumulate=accumulate, initial_weights=initial_weights)
        self._beta, self._epoch_steps = number("beta", beta, "(-inf, inf)"), count("epoch_steps", epoch_steps)
        self._normalize, self._loss_weighted = flag("normalize", normalize), flag("loss_weighted", loss_weighted)
        self.positive_losses = self._loss_weighted  # a factor of the weights, which are positive
        self.reset_parameters()

    def update(self, step: Step, state: EpochMeans) -> tuple[Tensor, EpochMeans, Log]:
        """One more loss for the epoch's mean, and the weights among the tasks that have had two epochs."""
        means = state.after(step.losses, self._epoch_steps)
        known = means.epochs >= 2
        those = step.among(known)
        slopes = means.last_epoch - means.epoch_before
        if self._normalize:
            slopes = slopes / (torch.dot(slopes.abs(), those.uniform.sign()) + 1e-8)
        values = those.softmax(self._beta * slopes)
        values = means.last_epoch * values if self._loss_weighted else values
        return torch.where(known, those.in_proportion(values), step.weights), means, {}
