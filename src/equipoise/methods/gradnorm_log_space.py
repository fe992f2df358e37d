"""GradNorm with the logarithms of the weights learned instead of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import final

import torch
from torch import Tensor

from equipoise.balancers._adam import Moments, adam, check_adam
from equipoise.balancers._balancer import Log, Step
from equipoise.balancers._gradnorm import gradnorm_loss, gradnorm_targets
from equipoise.balancers._gradnorm_family import GradNormFamily
from equipoise.balancers._present import mean_over, shown
from equipoise.balancers._shares import in_proportion
from equipoise.engine import Source


def log_space_gradient(gradient_norms: Tensor, targets: Tensor) -> Tensor:
    r""":math:`\partial L_\mathrm{grad} / \partial \log w_i = G_i \, \mathrm{sign}(G_i - \mathrm{target}_i)`.

    Exact and of first order, since :math:`G_i = e^{\log w_i} \lVert g_i \rVert` and the target is a constant.
    """
    return gradient_norms * (gradient_norms - targets).sign()


def multiplied(weights: Tensor, change: Tensor, present: Tensor) -> Tensor:
    r""":math:`w_i e^{\Delta_i}`, scaled so that all weights sum to T; absent tasks keep theirs."""
    smallest = torch.finfo(weights.dtype).tiny  # what is positive stays so in floating point too
    return in_proportion((weights * change.exp()).clamp(min=smallest), present, weights)


@final
class GradNormLogSpace(GradNormFamily):
    r"""GradNorm that moves the weights by factors: Adam on :math:`\log w_i` instead of :math:`w_i`.

    The loss of the weights, its targets and its steady state are those of `GradNorm`; the step is

    .. math::
        \frac{\partial L_\mathrm{grad}}{\partial \log w_i} = G_i \, \mathrm{sign}(G_i - \bar G \, r_i^\alpha), \qquad
        w_i \leftarrow w_i \, e^{\Delta_i}, \qquad w_i \leftarrow w_i \, T \Big/ \sum_j w_j

    with :math:`\Delta_i` Adam's step. A weight is positive whatever the step, and its relative change is what the learning
    rate bounds: weights that have to differ by orders of magnitude get there, and chatter there by the same share.

    When to use:
        As `GradNorm`, where weights have to differ by orders of magnitude.

    Args:
        fork: Where the network splits into tasks.
        alpha: How strongly slow tasks are favoured: 0 makes the norms equal, larger values pull harder. At least 0.
        every: Measured, and the weights moved, at each ``every``-th step; the other steps cost nothing.
        start: The number of steps before the weights begin to move; ``L_i(0)`` is still that of the first steps.
        lr: Adam's learning rate for log w: about the largest relative change of a weight in one step.
        betas: Adam's decay rates.
        initial_losses: ``L_i(0)`` by task name; ``None``: measured.
        initial_steps: Where it is measured, the number of a task's first losses of which ``L_i(0)`` is the mean.
        priors: How important a task is, by name: its target is multiplied by it. Scaled to a mean of 1. ``None``: all alike.
        patience: Take a task that is stuck out of the update, as in `GradNorm`. ``None``: do not look.

    Raises:
        TypeError: ``fork`` is none of these.
        ValueError: A setting is out of its range; later, by task name, a first loss that is not finite and positive, or,
            where alpha > 0, a loss that is negative.

    Log:
        ``gradient_norms`` :math:`G_i`, ``targets``, ``training_rates`` :math:`r_i`; ``gradnorm_loss`` (a scalar). With
        ``patience``, ``stuck``: which tasks were taken out.

    Differs from the paper:
        The paper's update rule is applied to w itself, which makes the largest change of a weight in one step the same for
        large and small weights, and can carry a small one past zero. Here it is applied to log w; nothing else differs, and
        there is neither a floor nor a cap. For the rest see `GradNorm`.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> from equipoise import Fork
        >>> fork = Fork(torch.nn.Linear(3, 2), tasks=("small", "large"))
        >>> balancer = GradNormLogSpace(fork, alpha=0.0)
        >>> features = fork(torch.ones(1, 3))
        >>> balancer({"small": features["small"].square().sum(), "large": 9 * features["large"].square().sum()}).backward()
        >>> balancer.step()
        >>> balancer.weights
        tensor([1.0250, 0.9750])

    References:
        Chen, Badrinarayanan, Lee, Rabinovich 2018, GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep
        Multitask Networks, Equations 1 and 2 and Algorithm 1.
    """

    unit: Tensor

    def __init__(
        self,
        fork: Source,
        alpha: float = 1.5,
        *,
        every: int = 1,
        start: int = 0,
        lr: float = 0.025,
        betas: tuple[float, float] = (0.9, 0.999),
        initial_losses: Mapping[str, float] | None = None,
        initial_steps: int = 1,
        priors: Mapping[str, float] | None = None,
        patience: int | None = None,
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
        check_adam(lr, betas)
        self._lr, self._betas = lr, betas
        self.register_buffer("unit", self.weights.new_zeros(()))
        Moments.register(self, self.weights)

    def _rule(self, step: Step, task_norms: Tensor, active: Tensor, weights: Tensor) -> tuple[dict[str, Tensor], Log]:
        gradient_norms = step.weights * task_norms
        targets = gradnorm_targets(gradient_norms, step.training_rates, self.alpha, self.priors, active)
        mean_norm = mean_over(gradient_norms, active)
        unit = torch.where(self.unit > 0, self.unit, mean_norm)
        change, moments = adam(
            log_space_gradient(gradient_norms, targets),
            Moments.of(self),
            active,
            lr=self._lr,
            betas=self._betas,
            eps=1e-8 * unit,
        )
        state = {
            "weights": multiplied(weights, change, active),
            "unit": unit,
            **moments.state(),
        }
        log: Log = {
            "targets": partial(shown, targets, step.present),
            "gradnorm_loss": partial(gradnorm_loss, gradient_norms, targets, active),
        }
        return state, log
