"""Geometric loss strategy (Chennupati, Sistu, Yogamani and Rawashdeh 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from equipoise.balancers._current_losses import CurrentLossBalancer
from equipoise.engine import Source


def gls_weights(losses: Tensor, present: Tensor) -> Tensor:
    r""":math:`w_i = \partial G / \partial L_i = G / (n L_i)` of the geometric mean :math:`G = (\prod_j L_j)^{1/n}`.

    The mean is that of the n tasks present.
    """
    count = present.sum()
    geometric_mean = (torch.where(present, losses, 1.0).log().sum() / count).exp()
    return geometric_mean / (count * losses)


@final
class GLS(CurrentLossBalancer):
    r"""The geometric mean of the losses, :math:`L = (\prod_i L_i)^{1/T}`: :math:`w_i = L / (T L_i)`.

    Every task contributes :math:`w_i L_i = L / T`, whatever the unit of its loss.

    When to use:
        Positive losses in different units, without a setting to tune. The effective learning rate falls with the
        losses.

    Args:
        tasks: The fork (or what `attach` or `PerLoss` give), or the names of the tasks.
        every: Gradient norms are measured for the log at each ``every``-th step; ``None``: never.
        start: The number of steps before the weights begin to move.

    Raises:
        ValueError: A loss is not positive; the message names the task. On an accelerator only a task's first loss is looked
            at, and later such a step is skipped and counted.

    Differs from the paper:
        Nothing in value or gradient. Where tasks are absent, the mean is that of the others. The paper's variant that
        counts some losses twice, to focus on them, is left out.

    Example:
        >>> import torch
        >>> balancer = GLS(("a", "b"))
        >>> total = balancer({"a": torch.tensor(2.0), "b": torch.tensor(8.0)})
        >>> round(total.item(), 4)
        4.0

    References:
        Chennupati, Sistu, Yogamani, Rawashdeh 2019, MultiNet++: Multi-stream feature aggregation and geometric loss
        strategy for multi-task learning, section 3 (equation number not verified).
    """

    def __init__(self, tasks: Source | Sequence[str], *, every: int | None = None, start: int = 0) -> None:
        super().__init__(tasks, every=every, start=start)

    def _weights_of(self, losses: Tensor, present: Tensor) -> Tensor:
        return gls_weights(losses, present)
