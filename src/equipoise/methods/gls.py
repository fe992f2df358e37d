"""Geometric loss strategy (Chennupati, Sistu, Yogamani and Rawashdeh 2019)."""

from __future__ import annotations

from typing import final

from torch import Tensor

from equipoise.balancer import Balancer, NoState, Step, Tasks
from equipoise.methods.static import unchanged


@final
class GLS(Balancer):
    r"""The geometric mean of the losses, :math:`L = (\prod_i L_i)^{1/T}`: :math:`w_i = L / (T L_i)`.

    Every task contributes :math:`w_i L_i = L / T`, whatever the unit of its loss.

    When to use:
        Positive losses in different units, without a setting to tune. The learning rate falls with the losses.

    Args:
        tasks, every, start, accumulate: See `Balancer`; each micro-batch is weighted by its own losses.

    Raises:
        ValueError: A loss is not positive. On an accelerator only a task's first is refused; later the step is skipped.

    Differs from the paper:
        Absent tasks are left out of the mean. The paper's variant that counts some losses twice is left out.

    Example:
        >>> import torch
        >>> balancer = GLS(("a", "b"))
        >>> balancer(torch.tensor([2.0, 8.0], requires_grad=True)).item()
        4.0

    References:
        Chennupati, Sistu, Yogamani, Rawashdeh 2019, MultiNet++: Multi-stream feature aggregation and geometric loss
        strategy for multi-task learning, section 3 (equation number not verified).
    """

    positive_losses = weighs = True
    update = unchanged

    def __init__(self, tasks: Tasks, *, every: int | None = None, start: int = 0, accumulate: bool = False) -> None:
        super().__init__(tasks, every=every, start=start, accumulate=accumulate)
        self.reset_parameters()

    def weigh(self, step: Step, state: NoState) -> Tensor:
        """The derivatives of the geometric mean of the tasks present."""
        return step.mean(step.losses.log()).exp() * step.uniform / step.losses
