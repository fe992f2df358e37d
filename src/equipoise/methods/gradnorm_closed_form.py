"""GradNorm without a learning rate: the weights at which the paper's rule would come to rest."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, final

import torch
from torch import Tensor

from equipoise.arguments import ByTask, flag, number
from equipoise.balancer import Log, Step
from equipoise.engine import GradientSource
from equipoise.methods.gradnorm import gradnorm_targets
from equipoise.methods.gradnorm_family import GradNormFamily


class State(NamedTuple):
    """The running mean of the pulls, started from zero, its number of steps, and the first and last losses observed or 0."""

    pull_mean: Tensor
    pull_count: Tensor
    observed_first: Tensor
    observed_last: Tensor


@final
class GradNormClosedForm(GradNormFamily):
    r"""The weights at which GradNorm's rule comes to rest, set at once: no learning rate.

    .. math::
        w_i = T \, \frac{p_i \, r_i^\alpha / \lVert g_i \rVert}{\sum_j p_j \, r_j^\alpha / \lVert g_j \rVert}

    With these weights every norm :math:`w_i \lVert g_i \rVert` is proportional to :math:`p_i r_i^\alpha`. The
    logarithms of :math:`\tilde L_i^\alpha / \lVert g_i \rVert` are smoothed over the steps by a running mean, corrected
    for its start: a geometric mean, in which a factor in front of a loss is the same factor in its weight.

    When to use:
        As `GradNorm`, without a learning rate to choose, or where the norms change faster than its weights can follow.
        With ``initial_weights="balanced"`` for norms that differ about tenfold.

    Args:
        decay: Of the running mean, in [0, 1): over about the last ``1 / (1 - decay)`` measured steps.
        compare_absent: The tasks come in turns, one or a few to a step: balance all that were seen so far, the absent
            ones by their running means. ``False``: an absent task keeps its weight, also one that is alone.
        fork, alpha, priors, initial_weights: See `GradNorm`.
        every, start, accumulate, initial_losses, initial_steps: See `Balancer`.

    Raises:
        TypeError, ValueError: As for `GradNorm`.

    Log:
        ``gradient_norms`` :math:`G_i`, ``targets``, ``training_rates`` :math:`r_i` among the tasks present.

    Differs from the paper:
        The paper moves the weights step by step along the gradient of :math:`\sum_i | G_i - \bar G r_i^\alpha |`. At
        its rest, :math:`G_i = \bar G r_i^\alpha`, the weights are those above wherever targets and norms have the same
        sum (always for alpha = 0 and alpha = 1); elsewhere the paper's rule, which cannot meet all its targets, rests
        beside. A task whose gradient, or with alpha > 0 whose loss, is exactly zero is left out of the step like an
        absent one, which keeps its weight; the others keep the sum that they had together.

    Example:
        >>> from equipoise import Fork
        >>> fork = Fork(torch.nn.Linear(3, 2), tasks=("small", "large"))
        >>> balancer = GradNormClosedForm(fork, alpha=0.0)
        >>> features = fork(torch.ones(1, 3))
        >>> balancer({"small": features["small"].square().sum(), "large": 9 * features["large"].square().sum()}).backward()
        >>> balancer.step()
        >>> balancer.weights
        tensor([1.8000, 0.2000])

    References:
        Chen et al. 2018, GradNorm, Equations 1 and 2, set to zero.
    """

    state_type = State

    def __init__(
        self,
        fork: GradientSource,
        alpha: float = 1.5,
        *,
        every: int = 1,
        start: int = 0,
        accumulate: bool = False,
        decay: float = 0.99,
        initial_losses: ByTask | None = None,
        initial_steps: int = 1,
        initial_weights: ByTask | str | None = None,
        priors: ByTask | None = None,
        compare_absent: bool = False,
    ) -> None:
        super().__init__(fork, alpha, priors, every, start, accumulate, initial_losses, initial_steps, initial_weights)
        self._decay = number("decay", decay, "[0, 1)")
        self._compare_absent = self.moves_absent = flag("compare_absent", compare_absent)
        self.reset_parameters()

    def update(self, step: Step, state: State) -> tuple[Tensor, State, Log]:
        """The weights at rest, from the smoothed pulls."""
        assert step.norms is not None
        ratios = self.ratios(step, state)
        pulls = torch.log(ratios**self.alpha) - torch.log(step.norms)  # not finite where a norm or a ratio is zero
        here = pulls.isfinite() & (step.uniform > 0)
        mean = torch.where(here, state.pull_mean.lerp(pulls.nan_to_num(), 1 - self._decay), state.pull_mean)
        counts = state.pull_count + here
        smooth = mean / (1 - self._decay ** counts.clamp(min=1))
        balanced = counts > 0 if self._compare_absent else here
        smooth = smooth.masked_fill(~balanced, -torch.inf)
        factors = (smooth - smooth.amax()).exp()  # the largest is taken out, so that no factor overflows
        weights = step.as_if_present(balanced).in_proportion(self.priors * factors)
        targets = gradnorm_targets(step.weights * step.norms, ratios, self.alpha, self.priors, step)
        state = state._replace(pull_mean=mean, pull_count=counts)
        log: Log = {"targets": targets, "training_rates": partial(step.relative, ratios)}
        return torch.where(balanced, weights, step.weights), state, log
