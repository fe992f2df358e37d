"""Weights 1 / L_i(0): the simplest answer to losses of different size."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from equipoise.arguments import ByTask
from equipoise.balancer import Balancer, Log, NoState, Step, Tasks


def inverse_initial_loss_weights(initial_losses: Tensor) -> Tensor:
    r""":math:`w_i \propto 1 / L_i(0)` with :math:`\sum_i w_i` the number of tasks seen; 1 for a task not yet seen (NaN)."""
    seen = initial_losses > 0
    smallest = torch.where(seen, initial_losses, torch.inf).amin()  # ratios to it do not overflow, as 1 / L may
    inverse = torch.where(seen, smallest / initial_losses, 0.0)
    return torch.where(seen, inverse * (seen.sum() / inverse.sum()), 1.0)


@final
class InverseInitialLoss(Balancer):
    r"""Constant weights :math:`w_i \propto 1 / L_i(0)`, scaled so that :math:`\sum_i w_i = T`.

    The first step is weighted with them already. A task that is not yet seen weighs 1; the others sum to their number.

    When to use:
        After equal weights: the losses differ in size because of their units, which ``L_i(0)`` measures fairly. Not
        where losses mean different things: a physics-informed network learnt nothing with it.

    Args:
        tasks, every, accumulate, initial_losses, initial_steps: See `Balancer`.

    Raises:
        ValueError: A given or measured initial loss is not positive and finite; the message names the task.

    Differs from the paper:
        There is none.

    Example:
        >>> balancer = InverseInitialLoss(("a", "b"))
        >>> losses = {task: torch.tensor(loss, requires_grad=True) for task, loss in {"a": 1.0, "b": 3.0}.items()}
        >>> balancer(losses)
        tensor(3., grad_fn=<_TotalBackward>)
    """

    weighs = moves_absent = divides_by_initial = True

    def __init__(
        self,
        tasks: Tasks,
        *,
        initial_losses: ByTask | None = None,
        initial_steps: int = 1,
        every: int | None = None,
        accumulate: bool = False,
    ) -> None:
        super().__init__(
            tasks, every=every, accumulate=accumulate, initial_losses=initial_losses, initial_steps=initial_steps
        )
        self.reset_parameters()

    def init_state(self, weights: Tensor) -> tuple[Tensor, NoState]:
        """The weights of the losses that are given, or equal ones."""
        given = self._given_losses
        return weights if given is None else inverse_initial_loss_weights(weights.new_tensor(given)), NoState()

    def weigh(self, step: Step, state: NoState) -> Tensor:
        """The weights, the losses at hand included where ``L_i(0)`` is still measured."""
        # absent tasks may have been seen before
        return inverse_initial_loss_weights(torch.where(step.uniform > 0, step.initial_losses, self.initial_losses))

    def update(self, step: Step, state: NoState) -> tuple[Tensor, NoState, Log]:
        """The weights of the whole batch's losses."""
        return self.weigh(step, state), state, {}
