"""Weighting by the coefficient of variation (Groenendijk, Karaoglu, Gevers and Mensink 2021)."""

from __future__ import annotations

from typing import NamedTuple, final

import torch
from torch import Tensor

from equipoise.arguments import ByTask
from equipoise.balancer import Balancer, Log, Step, Tasks


class State(NamedTuple):
    """The moments of each task's losses and loss ratios so far, ``(T,)``; ``squares``: the sum of squared deviations."""

    mean_losses: Tensor
    mean_ratios: Tensor
    squares: Tensor
    counts: Tensor


@final
class CoV(Balancer):
    r"""Weights from how much each loss varies, relative to its size.

    .. math:: w_i = T \frac{c_i}{\sum_j c_j}, \qquad c_i = \frac{\sigma_{\ell_i}}{\mu_{\ell_i}}, \qquad
        \ell_i(t) = \frac{L_i(t)}{\mu_{L_i}(t - 1)}

    with means and standard deviation over all steps so far. A loss that has settled weighs less, in any unit.

    When to use:
        Many loss terms of one output, where those that have settled should give way to those that still change.

    Args:
        initial_weights: The weights of the steps before a task's third; see `Balancer`. ``None``: 1.
        tasks, every, start, accumulate: See `Balancer`.

    Raises:
        ValueError: A loss is not positive. On an accelerator only a task's first is refused; later the step is skipped.

    Differs from the paper:
        The weights sum to T instead of 1. As in the authors' code, 1e-8 is added to the variance, and a step's weights
        come from the losses before it. The code's option of a decaying mean is left out.

    Example:
        >>> balancer = CoV(("settled", "learning"))
        >>> for losses in ([1.0, 4.0], [1.1, 2.0], [1.0, 1.0]):
        ...     balancer(torch.tensor(losses, requires_grad=True)).backward()
        ...     balancer.step()
        >>> balancer.weights
        tensor([0.2308, 1.7692])

    References:
        Groenendijk, Karaoglu, Gevers, Mensink 2021, Multi-loss weighting with coefficient of variations, section 3
        (equation number not verified), and the authors' ``losses/covweighting_loss.py``.
    """

    state_type = State
    positive_losses = True

    def __init__(
        self,
        tasks: Tasks,
        *,
        every: int | None = None,
        start: int = 0,
        accumulate: bool = False,
        initial_weights: ByTask | str | None = None,
    ) -> None:
        super().__init__(tasks, every=every, start=start, accumulate=accumulate, initial_weights=initial_weights)
        self.reset_parameters()

    def update(self, step: Step, state: State) -> tuple[Tensor, State, Log]:
        """One more loss for the moments, and the weights among the tasks that have two or more."""
        n = state.counts + 1
        ratios = step.losses / torch.where(state.counts > 0, state.mean_losses, step.losses)
        mean_losses = state.mean_losses + (step.losses - state.mean_losses) / n
        mean_ratios = state.mean_ratios + (ratios - state.mean_ratios) / n
        squares = state.squares + (ratios - state.mean_ratios) * (ratios - mean_ratios)
        known = n >= 2
        those = step.among(known)
        variation = (squares / n + 1e-8).sqrt() / mean_ratios
        variation = torch.where(those.uniform > 0, variation, 0.0)  # an absent task's is not its own and may overflow
        weights = torch.where(known, those.in_proportion(variation), step.weights)
        return weights, State(mean_losses, mean_ratios, squares, n), {}
