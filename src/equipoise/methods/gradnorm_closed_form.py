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


def log_pulls(task_norms: Tensor, loss_ratios: Tensor, alpha: float) -> Tensor:
    r""":math:`\log(\tilde L_i^\alpha / \lVert g_i \rVert)`: the logarithm of task i's weight, up to a sum common to all tasks.

    Each entry is made of one task's numbers alone. Not finite where a norm or, with alpha > 0, a loss is zero.
    """
    return torch.log(loss_ratios**alpha) - torch.log(task_norms)


def closed_form_weights(pulls: Tensor, priors: Tensor | float, step: Step) -> Tensor:
    r""":math:`w_i \propto p_i \, e^{\mathrm{pull}_i}`, such that all weights sum to T.

    That is :math:`w_i \propto p_i r_i^\alpha / \lVert g_i \rVert`, as :math:`r_i` and :math:`\tilde L_i` differ by a
    common factor. The largest is taken out before the exponential, so that no factor overflows.
    """
    return step.in_proportion(priors * (pulls - pulls.amax()).exp())


class State(NamedTuple):
    """The state between two steps, each ``(T,)``.

    Attributes:
        pull_mean: The running mean of the pulls, not yet corrected for its start from zero.
        pull_count: Of how many steps it is the mean.
        observed_first: The first loss handed to `observe`; 0 where there was none.
        observed_last: The last one.
    """

    pull_mean: Tensor
    pull_count: Tensor
    observed_first: Tensor
    observed_last: Tensor


@final
class GradNormClosedForm(GradNormFamily):
    r"""The weights at which GradNorm's rule rests, taken at once: no learning rate.

    .. math::
        w_i = T \, \frac{p_i \, r_i^\alpha / \lVert g_i \rVert}{\sum_j p_j \, r_j^\alpha / \lVert g_j \rVert}

    With these weights every norm :math:`w_i \lVert g_i \rVert` is proportional to :math:`p_i r_i^\alpha`. The
    logarithms of :math:`\tilde L_i^\alpha / \lVert g_i \rVert` are smoothed over the steps by a running mean, corrected
    for its start: a geometric mean, in which a factor in front of a loss is the same factor in its weight. Weights are
    positive by construction and of any ratio; there is no floor.

    When to use:
        As `GradNorm`, without a learning rate to choose, or where the norms change faster than its weights can follow.
        First choice for terms that differ by orders of magnitude.

    Args:
        fork: Where the network splits into tasks.
        alpha: How strongly slow tasks are favoured: 0 makes the norms equal, larger values pull harder. At least 0.
        decay: Of the running mean, in [0, 1): it runs over about the last ``1 / (1 - decay)`` measured steps. 0: none.
            On the lab's toy and yeast problems what is learnt hardly depends on it; with 0.99 the weights are steadier
            than those of `GradNorm` with its default rate, with 0.9 on yeast they are not.
        priors: How important a task is, by name: its weight is multiplied by it before the scaling. ``None``: all
            alike.
        compare_absent: The tasks come in turns, one or a few to a step: balance all that were seen so far, the absent
            ones by their running means. ``False``: an absent task keeps its weight, and those present are balanced
            among each other, so that a task that is alone keeps its weight as well.
        every, start, accumulate, initial_losses, initial_steps, initial_weights: See `Balancer`.

    Raises:
        TypeError: ``fork`` is none of these.
        ValueError: A setting is out of its range; later, by task name, a first loss that is not finite and positive,
            or, where alpha > 0, a loss that is negative.

    Units:
        None: a factor in front of one loss divides its weight by that factor, from the first step on.

    Log:
        ``gradient_norms`` :math:`G_i`, ``targets``, ``training_rates`` :math:`r_i`, the last two among the tasks
        present.

    Differs from the paper:
        The paper moves the weights step by step along the gradient of :math:`\sum_i | G_i - \bar G r_i^\alpha |`. At
        its rest, :math:`G_i = \bar G r_i^\alpha`, the weights are those above wherever the targets sum to what the
        norms sum to (always for alpha = 0 and alpha = 1); elsewhere the paper's rule, which cannot meet all its
        targets, rests beside.

        A task whose gradient, or with alpha > 0 whose loss, is exactly zero has no such weight: it is left out of the
        step like an absent one. Absent tasks keep their weight, and the others the sum that they had together; the
        paper knows no absent tasks. With ``compare_absent`` the running means of all tasks are compared, whenever they
        were last seen.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> from equipoise import Fork
        >>> fork = Fork(torch.nn.Linear(3, 2), tasks=("small", "large"))
        >>> balancer = GradNormClosedForm(fork, alpha=0.0)
        >>> features = fork(torch.ones(1, 3))
        >>> balancer({"small": features["small"].square().sum(), "large": 9 * features["large"].square().sum()}).backward()
        >>> balancer.step()
        >>> balancer.weights
        tensor([1.8000, 0.2000])

    References:
        Chen, Badrinarayanan, Lee, Rabinovich 2018, GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep
        Multitask Networks, Equations 1 and 2, set to zero.
    """

    pull_mean: Tensor
    pull_count: Tensor

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
        super().__init__(
            fork,
            alpha,
            priors,
            every=every,
            start=start,
            accumulate=accumulate,
            initial_losses=initial_losses,
            initial_steps=initial_steps,
            initial_weights=initial_weights,
        )
        self._decay = number("decay", decay, "[0, 1)")
        self._compare_absent = self.moves_absent = flag("compare_absent", compare_absent)
        self.reset_parameters()

    def init_state(self, weights: Tensor) -> tuple[Tensor, State]:
        """Nothing measured yet."""
        return weights, State(*(torch.zeros_like(weights) for _ in State._fields))

    def update(self, step: Step, state: State) -> tuple[Tensor, State, Log]:
        """The weights at rest, from the smoothed pulls."""
        assert step.norms is not None
        ratios = self.ratios(step)
        pulls = log_pulls(step.norms, ratios, self.alpha)
        here = pulls.isfinite() & (step.uniform > 0)
        mean = torch.where(here, state.pull_mean.lerp(pulls.nan_to_num(), 1 - self._decay), state.pull_mean)
        counts = state.pull_count + here
        smooth = mean / (1 - self._decay ** counts.clamp(min=1))
        balanced = counts > 0 if self._compare_absent else here
        among = step.as_if_present(balanced)
        weights = closed_form_weights(smooth.masked_fill(~balanced, -torch.inf), self.priors, among)
        targets = gradnorm_targets(step.weights * step.norms, ratios, self.alpha, self.priors, step)
        state = State(mean, counts, state.observed_first, state.observed_last)
        log: Log = {"targets": targets, "training_rates": partial(self.rates, step)}
        return torch.where(balanced, weights, step.weights), state, log
