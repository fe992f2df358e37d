"""Smooth Tchebycheff scalarisation (Lin, Zhang, Yang et al. 2024)."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from equipoise.arguments import ByTask, number
from equipoise.balancer import Balancer, NoState, Step, Tasks
from equipoise.methods.static import unchanged


@final
class STCH(Balancer):
    r"""A smooth maximum of the relative losses: the loss that has fallen least weighs most.

    .. math:: w_i = \frac{T}{L_i}\,\mathrm{softmax}_i\!\left(\frac{1}{\mu} \log \frac{L_i}{L_i(0)}\right)

    which is the gradient of :math:`T \mu \log \sum_i \exp(\log(L_i / L_i(0)) / \mu)`. Until :math:`L_i(0)` is measured,
    the task takes part as if it stood there; where that is so for all, :math:`w_i = 1 / L_i`.

    When to use:
        The worst task matters most: a small ``mu`` trains the task whose loss has fallen least.

    Args:
        mu: How smooth the maximum is: the smaller, the more the worst task alone counts.
        tasks, every, start, accumulate, initial_losses, initial_steps: See `Balancer`.

    Raises:
        ValueError: A setting is out of its range; or a loss is not positive; see `GLS`.

    Differs from the paper:
        The form is that of the authors' multi-task experiments: logarithms of losses, an ideal point of zero, and a
        preference of 1 for every task; the paper's sum to 1. They compare with the mean losses of an epoch after some
        on the sum of log losses; here with a task's first losses. The total loss is another, with the same gradient.

    Example:
        >>> balancer = STCH(("a", "b"), mu=1.0, initial_losses={"a": 1.0, "b": 1.0})
        >>> balancer(torch.tensor([3.0, 1.0], requires_grad=True)).backward()
        >>> balancer.step()
        >>> balancer.weights
        tensor([0.5000, 0.5000])

    References:
        Lin, Zhang, Yang, Liu, Wang, Zhang 2024, Smooth Tchebycheff scalarization for multi-objective optimization,
        section 3 (equation number not verified), and the authors' ``STCH_MTL/LibMTL/weighting/STCH.py``.
    """

    positive_losses = weighs = True
    update = unchanged

    def __init__(
        self,
        tasks: Tasks,
        *,
        mu: float = 1.0,
        initial_losses: ByTask | None = None,
        initial_steps: int = 1,
        every: int | None = None,
        start: int = 0,
        accumulate: bool = False,
    ) -> None:
        super().__init__(
            tasks,
            every=every,
            start=start,
            accumulate=accumulate,
            initial_losses=initial_losses,
            initial_steps=initial_steps,
        )
        self._mu = number("mu", mu, "(0, inf)")
        self.reset_parameters()

    def weigh(self, step: Step, state: NoState) -> Tensor:
        """The derivatives of the smooth maximum over the tasks present."""
        measured = self.initial_seen >= self._initial_steps
        nadir = torch.where(measured, step.initial_losses, step.losses)
        return step.uniform.count_nonzero() * step.softmax((step.losses / nadir).log() / self._mu) / step.losses
