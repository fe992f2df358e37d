"""GradNorm without a learning rate: the weights at which the paper's rule would come to rest."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import final

import torch
from torch import Tensor

from equipoise.balancers._balancer import Log, Step
from equipoise.balancers._gradnorm import gradnorm_targets
from equipoise.balancers._gradnorm_family import GradNormFamily
from equipoise.balancers._present import shown
from equipoise.balancers._shares import in_proportion, softmax
from equipoise.engine import Source


def log_pulls(task_norms: Tensor, loss_ratios: Tensor, alpha: float) -> Tensor:
    r""":math:`\log(\tilde L_i^\alpha / \lVert g_i \rVert)`: the logarithm of task i's weight, up to a sum common to all tasks.

    Each entry is made of one task's numbers alone. Not finite where a norm or, with alpha > 0, a loss is zero.
    """
    return torch.log(loss_ratios**alpha) - torch.log(task_norms)


def closed_form_weights(pulls: Tensor, priors: Tensor, present: Tensor, weights: Tensor) -> Tensor:
    r""":math:`w_i \propto p_i \, e^{\mathrm{pull}_i}`, such that all weights sum to T; absent tasks keep theirs.

    That is :math:`w_i \propto p_i r_i^\alpha / \lVert g_i \rVert`, as :math:`r_i` and :math:`\tilde L_i` differ by a common
    factor. Factors of any size are taken as logarithms, so that none overflows.
    """
    return in_proportion(softmax(pulls + priors.log(), present), present, weights)


@final
class GradNormClosedForm(GradNormFamily):
    r"""The weights at which GradNorm's rule rests, taken at once: no learning rate.

    .. math::
        w_i = T \, \frac{p_i \, r_i^\alpha / \lVert g_i \rVert}{\sum_j p_j \, r_j^\alpha / \lVert g_j \rVert}

    With these weights every norm :math:`w_i \lVert g_i \rVert` is proportional to :math:`p_i r_i^\alpha`. The logarithms of
    :math:`\tilde L_i^\alpha / \lVert g_i \rVert` are smoothed over the steps by a running mean, corrected for its start: a
    geometric mean, in which a factor in front of a loss is the same factor in its weight. Weights are positive by
    construction and of any ratio; there is no floor.

    When to use:
        As `GradNorm`, without a learning rate to choose, or where the norms change faster than its weights can follow.
        First choice for terms that differ by orders of magnitude.

    Args:
        fork: Where the network splits into tasks.
        alpha: How strongly slow tasks are favoured: 0 makes the norms equal, larger values pull harder. At least 0.
        every: Measured, and the weights moved, at each ``every``-th step; the other steps cost nothing.
        start: The number of steps before the weights begin to move; ``L_i(0)`` is still that of the first steps.
        decay: Of the running mean, in [0, 1): it runs over about the last ``1 / (1 - decay)`` measured steps. 0: none. On the
            lab's toy and yeast problems what is learnt hardly depends on it; with 0.99 the weights are steadier than those
            of `GradNorm` with its default rate, with 0.9 on yeast they are not.
        initial_losses: ``L_i(0)`` by task name; ``None``: measured.
        initial_steps: Where it is measured, the number of a task's first losses of which ``L_i(0)`` is the mean.
        priors: How important a task is, by name: its weight is multiplied by it before the scaling. ``None``: all alike.
        patience: Take a task that is stuck out of the update, as in `GradNorm`. ``None``: do not look.
        in_turns: The tasks come in turns, one or a few to a step: balance all that were seen so far, the absent ones by their
            running means. ``False``: an absent task keeps its weight, and those present are balanced among each other, so
            that a task that is alone keeps its weight as well.

    Raises:
        TypeError: ``fork`` is none of these.
        ValueError: A setting is out of its range, or ``patience`` is given with ``in_turns``; later, by task name, a first
            loss that is not finite and positive, or, where alpha > 0, a loss that is negative.

    Units:
        None: a factor in front of one loss divides its weight by that factor, from the first step on.

    Log:
        ``gradient_norms`` :math:`G_i`, ``targets``, ``training_rates`` :math:`r_i`, the last two among the tasks present.
        With ``patience``, ``stuck``: which tasks were taken out.

    Differs from the paper:
        The paper moves the weights step by step along the gradient of :math:`\sum_i | G_i - \bar G r_i^\alpha |`. At its
        rest, :math:`G_i = \bar G r_i^\alpha`, the weights are those above wherever the targets sum to what the norms sum to
        (always for alpha = 0 and alpha = 1); elsewhere the paper's rule, which cannot meet all its targets, rests beside.

        A task whose gradient, or with alpha > 0 whose loss, is exactly zero has no such weight: it is left out of the step
        like an absent one. Absent tasks keep their weight, and the others the sum that they had together; the paper knows no
        absent tasks. With ``in_turns`` the running means of all tasks are compared, whenever they were last seen.

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
        fork: Source,
        alpha: float = 1.5,
        *,
        every: int = 1,
        start: int = 0,
        decay: float = 0.99,
        initial_losses: Mapping[str, float] | None = None,
        initial_steps: int = 1,
        priors: Mapping[str, float] | None = None,
        patience: int | None = None,
        in_turns: bool = False,
    ) -> None:
        super().__init__(
            fork,
            alpha,
            every=every,
            start=start,
            initial_losses=initial_losses,
            initial_steps=initial_steps,
            priors=priors,
            patience=patience,
        )
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1); found {decay}")
        if in_turns and patience is not None:
            raise ValueError(
                f"patience compares the tasks that are present, so it does not go with in_turns; found patience={patience}"
            )
        self._decay, self._in_turns = decay, in_turns
        self.register_buffer("pull_mean", torch.zeros_like(self.weights))
        self.register_buffer("pull_count", torch.zeros_like(self.weights, dtype=torch.int64))

    def _rule(self, step: Step, task_norms: Tensor, active: Tensor, weights: Tensor) -> tuple[dict[str, Tensor], Log]:
        losses, initial = self._compared(step.losses, step.initial_losses)
        pulls = log_pulls(task_norms, losses / initial, self.alpha)
        moving = active & pulls.isfinite()
        decayed = self._decay * self.pull_mean + (1 - self._decay) * pulls
        mean = torch.where(moving, decayed, self.pull_mean)
        count = self.pull_count + moving
        smooth = mean / (1 - self._decay ** count.clamp(min=1))
        balanced = count > 0 if self._in_turns else moving
        state = {
            "weights": closed_form_weights(smooth, self.priors, balanced, weights),
            "pull_mean": mean,
            "pull_count": count,
        }
        targets = gradnorm_targets(step.weights * task_norms, step.training_rates, self.alpha, self.priors, active)
        return state, {"targets": partial(shown, targets, step.present)}
