"""SoftAdapt (Heydari, Thompson and Mehmood 2019)."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from equipoise.arguments import ByTask, count, flag, number
from equipoise.balancer import Balancer, Log, Step, Tasks
from equipoise.methods.epoch_means import EpochMeans


def normalized_slopes(slopes: Tensor, step: Step) -> Tensor:
    r""":math:`s_i / (\sum_j |s_j| + 10^{-8})`, over the tasks present."""
    return slopes / (torch.dot(slopes.abs(), step.uniform.sign()) + 1e-8)


@final
class SoftAdapt(Balancer):
    r"""Weights from the slopes of the losses: with :math:`\beta > 0`, the task that falls least weighs most.

    .. math:: w_i = T \frac{\exp(\beta s_i)}{\sum_j \exp(\beta s_j)}, \qquad s_i = L_i(e) - L_i(e - 1)

    Normalised, the slopes are divided by the sum of their absolute values. Loss-weighted,
    :math:`w_i \propto L_i(e) \exp(\beta s_i)`. The two can be combined.

    When to use:
        Few terms of one objective, where those that rise or stall shall gain weight at once. Slopes of noisy batches
        are noise: give it ``epoch_steps``.

    Args:
        beta: How much the slopes say; negative to favour the task that falls most.
        epoch_steps: The losses that are compared, :math:`L_i(e)`, are means over this many of a task's losses.
        normalize: Whether the slopes are normalised. Without, beta is in the unit of an inverse loss, and has to be
            tuned to the losses.
        loss_weighted: Whether the losses themselves are a factor.
        tasks, every, start, accumulate, initial_weights: See `Balancer`.

    Raises:
        ValueError: A setting is out of its range; or, with ``loss_weighted`` alone, a loss is not positive. On an
            accelerator only a task's first is refused; later the step is skipped.

    Differs from the paper:
        The weights sum to T throughout; in the authors' package they start at 1 each, and from the first update on
        their sum is 1, so that the network's effective learning rate falls by a factor of T there. The slope is the
        difference of two values; the package offers differences of higher order. It divides normalised slopes by their
        plain sum, and multiplies with the mean loss of the values compared; the first release took the sum of absolute
        values and the last loss, as here. A task keeps its weight until its slope is known.

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
        self._beta = number("beta", beta, "(-inf, inf)")
        self._epoch_steps = count("epoch_steps", epoch_steps)
        self._normalize = flag("normalize", normalize)
        self._loss_weighted = flag("loss_weighted", loss_weighted)
        self.positive_losses = self._loss_weighted  # type: ignore[misc]  # a factor of the weights, which are positive
        self.reset_parameters()

    def init_state(self, weights: Tensor) -> tuple[Tensor, EpochMeans]:
        """No epoch yet."""
        return weights, EpochMeans.zeros(weights)

    def update(self, step: Step, state: EpochMeans) -> tuple[Tensor, EpochMeans, Log]:
        """One more loss for the epoch's mean, and the weights among the tasks that have had two epochs."""
        means = state.after(step.losses, self._epoch_steps)
        those = step.among(means.comparable)
        slopes = means.last_epoch - means.epoch_before
        slopes = normalized_slopes(slopes, those) if self._normalize else slopes
        values = those.softmax(self._beta * slopes)
        values = means.last_epoch * values if self._loss_weighted else values
        return torch.where(means.comparable, those.in_proportion(values), step.weights), means, {}
