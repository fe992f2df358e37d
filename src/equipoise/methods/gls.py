"""Geometric loss strategy (Chennupati, Sistu, Yogamani and Rawashdeh 2019)."""

from __future__ import annotations

from typing import final

from torch import Tensor

from equipoise.balancer import Balancer, Log, Step, Tasks
from equipoise.methods.static import NoState


def gls_weights(losses: Tensor, step: Step) -> Tensor:
    r""":math:`w_i = \partial G / \partial L_i = G / (n L_i)`, with the geometric mean G of the n tasks present."""
    return step.mean(losses.log()).exp() * step.uniform / losses


@final
class GLS(Balancer):
    r"""The geometric mean of the losses, :math:`L = (\prod_i L_i)^{1/T}`: :math:`w_i = L / (T L_i)`.

    Every task contributes :math:`w_i L_i = L / T`, whatever the unit of its loss.

    When to use:
        Positive losses in different units, without a setting to tune. The effective learning rate falls with the losses.

    Args:
        tasks, every, start: See `Balancer`.
        accumulate: See `Balancer`; each micro-batch is weighted by its own losses.

    Raises:
        ValueError: A loss is not positive. On an accelerator only a task's first is refused; later the step is skipped.

    Differs from the paper:
        Nothing in value or gradient. Where tasks are absent, the mean is that of the others. The paper's variant that
        counts some losses twice, to focus on them, is left out.

    Example:
        >>> import torch
        >>> balancer = GLS(("a", "b"))
        >>> balancer(torch.tensor([2.0, 8.0], requires_grad=True)).item()
        4.0

    References:
        Chennupati, Sistu, Yogamani, Rawashdeh 2019, MultiNet++: Multi-stream feature aggregation and geometric loss
        strategy for multi-task learning, section 3 (equation number not verified).
    """

    positive_losses = True
    weighs = True

    def __init__(self, tasks: Tasks, *, every: int | None = None, start: int = 0, accumulate: bool = False) -> None:
        super().__init__(tasks, every=every, start=start, accumulate=accumulate)
        self.reset_parameters()

    def init_state(self, weights: Tensor) -> tuple[Tensor, NoState]:
        """No state."""
        return weights, NoState()

    def weigh(self, step: Step, state: NoState) -> Tensor:
        """The derivatives of the geometric mean."""
        return gls_weights(step.losses, step)

    def update(self, step: Step, state: NoState) -> tuple[Tensor, NoState, Log]:
        """The weights of the step."""
        return step.weights, state, {}
