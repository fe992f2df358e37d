"""Weights 1 / L_i(0): the simplest answer to losses of different size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from equipoise.balancers._balancer import Balancer, Step
from equipoise.balancers._initial_losses import check_initial_loss
from equipoise.engine import Source


def inverse_initial_loss_weights(initial_losses: Tensor) -> Tensor:
    r""":math:`w_i \propto 1 / L_i(0)` with :math:`\sum_i w_i` the number of tasks seen; 1 for a task not yet seen (NaN)."""
    seen = ~initial_losses.isnan()
    inverse = torch.where(seen, 1.0 / initial_losses, 0.0)
    return torch.where(seen, inverse * seen.sum() / inverse.sum(), 1.0)


@final
class InverseInitialLoss(Balancer):
    r"""Constant weights :math:`w_i \propto 1 / L_i(0)`, scaled so that :math:`\sum_i w_i = T`.

    When to use:
        Losses differ in size because their units do, and ``L_i(0)`` is a fair measure of the unit. Costs nothing and
        cannot go astray: try it before anything that adapts.

    Args:
        tasks: The fork (or what `attach` or `PerLoss` give), or the names of the tasks.
        initial_losses: ``L_i(0)`` by task name, for instance log C for the cross entropy of C classes. ``None``: measured.
        initial_steps: Where it is measured, the number of a task's first losses of which ``L_i(0)`` is the mean. The first
            step is taken with equal weights.
        every: Gradient norms are measured for the log at each ``every``-th step; ``None``: never.

    Raises:
        ValueError: A given or measured initial loss is not positive and finite; the message names the task.

    Example:
        >>> InverseInitialLoss(("a", "b"), initial_losses={"a": 1.0, "b": 3.0}).weights
        tensor([1.5000, 0.5000])
    """

    def __init__(
        self,
        tasks: Source | Sequence[str],
        *,
        initial_losses: Mapping[str, float] | None = None,
        initial_steps: int = 1,
        every: int | None = None,
    ) -> None:
        super().__init__(tasks, every=every, initial_losses=initial_losses, initial_steps=initial_steps)
        self.weights.copy_(inverse_initial_loss_weights(self.initial_losses))

    def _check_first(self, task: str, loss: float) -> None:
        if not self._initial_given:
            check_initial_loss(task, loss)

    def _update(self, step: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {"weights": inverse_initial_loss_weights(step.initial_losses)}, {}
