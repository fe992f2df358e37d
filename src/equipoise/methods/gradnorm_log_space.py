"""GradNorm with the logarithms of the weights learned instead of the weights."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, final

import torch
from torch import Tensor

from equipoise.arguments import SMALLEST, ByTask, number
from equipoise.balancer import Log, Step
from equipoise.engine import GradientSource
from equipoise.methods.adam import adam, check_betas
from equipoise.methods.gradnorm import gradnorm_loss, gradnorm_targets
from equipoise.methods.gradnorm_family import GradNormFamily


class State(NamedTuple):
    """Adam's moments, the unit of its epsilon ``()``, and the first and last losses observed or 0."""

    adam_mean: Tensor
    adam_square: Tensor
    adam_count: Tensor
    unit: Tensor
    observed_first: Tensor
    observed_last: Tensor


@final
class GradNormLogSpace(GradNormFamily):
    r"""GradNorm that moves the weights by factors: Adam on :math:`\log w_i` instead of :math:`w_i`.

    The loss of the weights, its targets and its steady state are those of `GradNorm`; the step is

    .. math::
        \frac{\partial L_\mathrm{grad}}{\partial \log w_i} = G_i \, \mathrm{sign}(G_i - \bar G \, r_i^\alpha), \qquad
        w_i \leftarrow w_i \, e^{\Delta_i}, \qquad w_i \leftarrow w_i \, T \Big/ \sum_j w_j

    with :math:`\Delta_i` Adam's step. A weight is positive whatever the step, and the learning rate bounds its relative
    change: weights that have to differ by orders of magnitude get there, and chatter there by the same share.

    When to use:
        As `GradNorm`, where weights have to differ by orders of magnitude.

    Args:
        lr: Adam's learning rate for log w: about the largest relative change of a weight in one step.
        fork, alpha, betas, priors, initial_weights: See `GradNorm`.
        every, start, accumulate, initial_losses, initial_steps: See `Balancer`.

    Raises:
        TypeError, ValueError: As for `GradNorm`.

    Log:
        ``gradient_norms`` :math:`G_i`, ``targets``, ``training_rates`` :math:`r_i`; ``gradnorm_loss`` (a scalar).

    Differs from the paper:
        The paper's update rule is applied to w itself, which makes the largest change of a weight in one step the same
        for large and small weights, and can carry a small one past zero. Here it is applied to log w, without floor or
        cap.

    Example:
        >>> from equipoise import Fork
        >>> GradNormLogSpace(Fork(torch.nn.Linear(3, 2), ("small", "large")), lr=0.1).weights
        tensor([1., 1.])

    References:
        Chen et al. 2018, GradNorm, Equations 1 and 2 and Algorithm 1.
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
        lr: float = 0.025,
        betas: tuple[float, float] = (0.9, 0.999),
        initial_losses: ByTask | None = None,
        initial_steps: int = 1,
        initial_weights: ByTask | str | None = None,
        priors: ByTask | None = None,
    ) -> None:
        super().__init__(fork, alpha, priors, every, start, accumulate, initial_losses, initial_steps, initial_weights)
        self._lr, self._betas = number("lr", lr, "(0, inf)"), check_betas(betas)
        self.reset_parameters()

    def init_state(self, weights: Tensor) -> tuple[Tensor, State]:
        """Nothing measured yet."""
        zeros = torch.zeros_like(weights)
        return weights, State(zeros, zeros, zeros, weights.new_zeros(()), zeros, zeros)

    def update(self, step: Step, state: State) -> tuple[Tensor, State, Log]:
        """One step of Adam on log w along the gradient of ``L_grad``, and the renormalisation."""
        assert step.norms is not None
        gradient_norms = step.weights * step.norms
        ratios = self.ratios(step, state)
        targets = gradnorm_targets(gradient_norms, ratios, self.alpha, self.priors, step)
        unit = torch.where(state.unit > 0, state.unit, step.mean(gradient_norms))
        gradient = gradient_norms * (gradient_norms - targets).sign()
        change, state = adam(gradient, state, lr=self._lr, betas=self._betas, eps=1e-8 * unit + SMALLEST)
        loss = partial(gradnorm_loss, gradient_norms, targets, step)
        log: Log = {"targets": targets, "training_rates": partial(step.relative, ratios), "gradnorm_loss": loss}
        smallest = torch.finfo(step.weights.dtype).tiny  # positive numbers stay so in floating point too
        weights = step.in_proportion((step.weights * change.exp()).clamp(min=smallest))
        return weights, state._replace(unit=unit), log
