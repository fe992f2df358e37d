"""GradNorm (Chen, Badrinarayanan, Lee and Rabinovich 2018): the paper's equations, and the state between two steps."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import final

import torch
from torch import Tensor

from equipoise.balancers._adam import Moments, adam, check_adam
from equipoise.balancers._balancer import Log, Step
from equipoise.balancers._gradnorm_family import GradNormFamily
from equipoise.balancers._present import is_free_to_read, mean_over, shown
from equipoise.engine import Source


def gradnorm_targets(
    gradient_norms: Tensor, rates: Tensor, alpha: float, priors: Tensor | float, present: Tensor
) -> Tensor:
    r"""The norm that each task's gradient should have, :math:`\bar G \, p_i \, r_i^\alpha` (Equation 1).

    :math:`\bar G` is the mean of the norms over the tasks present. A constant where ``L_grad`` is differentiated.
    """
    mean_norm = mean_over(gradient_norms, present)
    return mean_norm * priors * rates**alpha


def gradnorm_loss(gradient_norms: Tensor, targets: Tensor, present: Tensor) -> Tensor:
    r""":math:`L_\mathrm{grad} = \sum_i | G_i - \mathrm{target}_i |` (Equation 2), over the tasks present."""
    return torch.where(present, (gradient_norms - targets).abs(), 0.0).sum()


def gradnorm_gradient(task_norms: Tensor, gradient_norms: Tensor, targets: Tensor) -> Tensor:
    r""":math:`\partial L_\mathrm{grad} / \partial w_i = \lVert g_i \rVert \, \mathrm{sign}(G_i - \mathrm{target}_i)`.

    Exact and of first order, since :math:`G_i = w_i \lVert g_i \rVert` and the target is a constant.
    """
    return task_norms * (gradient_norms - targets).sign()


def renormalise(weights: Tensor, present: Tensor, total: Tensor, floor: float, cap: float) -> Tensor:
    r"""Scale the weights of the tasks present so that they sum to ``total``, none below ``floor`` or above ``cap``.

    Returns :math:`\min(\max(c\,w_i, \mathrm{floor}), \mathrm{cap})` with the one c that gives the sum. Where no bound is
    met, that is the paper's renormalisation :math:`w_i T / \sum_j w_j`. Absent tasks keep their weight.
    """
    positive = torch.where(present, weights, 1.0).clamp(min=floor)
    if is_free_to_read(weights):
        scaled = positive * (total / torch.where(present, positive, 0.0).sum())
        if scaled.equal(scaled.clamp(floor, cap)):
            return torch.where(present, scaled, weights)
    # The sum over the tasks is piecewise linear in c: a task's share grows with slope w_i from c = floor / w_i on, up to
    # c = cap / w_i. Walk along these kinks to the one before the total.
    slopes = torch.where(present, positive, 0.0)
    kinks, order = torch.cat([floor / positive, cap / positive]).sort()
    slope = torch.cat([slopes, -slopes])[order].cumsum(0)
    rise = (slope[:-1] * kinks.diff()).cumsum(0)
    sums = floor * present.sum() + torch.cat([rise.new_zeros(1), rise])
    # One index, but in a vector: an index without dimensions would be read on the host.
    last = (torch.searchsorted(sums, total.reshape(1), right=True) - 1).clamp(min=0, max=len(kinks) - 2)
    slope_there = slope.index_select(0, last).clamp(min=torch.finfo(slope.dtype).tiny)
    low, high = kinks.index_select(0, last), kinks.index_select(0, last + 1)
    scale = low + (total - sums.index_select(0, last)) / slope_there
    scale = scale.clamp(low, high)  # between kinks where every task is at a bound, any c will do
    return torch.where(present, (scale * positive).clamp(floor, cap), weights)


@final
class GradNorm(GradNormFamily):
    r"""Weights that balance the norms of the tasks' gradients at the last shared layer, and let slow tasks catch up.

    With :math:`g_i` the gradient of the unweighted loss :math:`L_i` with respect to the weight W of the last shared layer:

    .. math::
        G_i = w_i \lVert g_i \rVert, \qquad r_i = \frac{L_i(t) / L_i(0)}{\mathrm{mean}_j L_j(t) / L_j(0)}, \qquad
        L_\mathrm{grad} = \sum_i \left| G_i - \bar G \, r_i^\alpha \right|,

    the target :math:`\bar G r_i^\alpha` held constant. Each step takes one step of Adam on w along
    :math:`\partial L_\mathrm{grad} / \partial w_i`, then renormalises so that :math:`\sum_i w_i = T`. The network sees none
    of it: it trains on :math:`\sum_i w_i L_i` with the weights from before the step.

    When to use:
        Tasks share a trunk, their gradients at it differ in norm, and some learn more slowly than others. The weights move by
        at most ``lr`` a step; where they have to differ by more than about a hundredfold, take `GradNormLogSpace` or
        `GradNormClosedForm`.

    Args:
        fork: Where the network splits into tasks: a `Fork`, or what `attach` or `PerLoss` give.
        alpha: How strongly slow tasks are favoured: 0 makes the norms equal, larger values pull harder. At least 0.
        every: Measured, and the weights moved, at each ``every``-th step; the other steps cost nothing.
        start: The number of steps before the weights begin to move; ``L_i(0)`` is still that of the first steps.
        lr: Adam's learning rate for w: about the largest change of a weight in one step.
        betas: Adam's decay rates.
        initial_losses: ``L_i(0)`` by task name, for instance log C for the cross entropy of C classes. ``None``: measured.
        initial_steps: Where it is measured, the number of a task's first losses of which ``L_i(0)`` is the mean; until
            then it is the mean so far. A task that starts late starts from its own first loss.
        priors: How important a task is, by name: its target is multiplied by it. Scaled to a mean of 1, so that only ratios
            matter. ``None``: all alike.
        floor: The smallest weight; between 0 and 1. Adam's steps are of one size for all weights and would carry a small
            one past zero.
        cap: The largest weight; more than 1. ``None``: T, which no weight can pass. A task that is stuck has its weight
            raised without end (the paper's stated limitation): a cap stops it, and so does ``patience``; give one of them.
        patience: Take a task that is stuck out of the update. That is one that is slow, and whose loss, smoothed over
            ``patience`` steps, has not fallen by 5 per cent in its last ``patience`` steps though its weight is no smaller
            than when it last did. While that is so, its weight is the one of that time, and the others share the rest.
            ``None``: do not look. Too small a number takes the noise of the batches for the end of learning.

    Raises:
        TypeError: ``fork`` is none of these.
        ValueError: A setting is out of its range; later, by task name, a first loss that is not finite and positive, or,
            where alpha > 0, a loss that is negative: a ratio of losses then has no meaning.

    Shape:
        Every tensor is ``(T,)`` in task order.

    Units:
        Weights and rates have none; norms and targets are loss per unit of W.

    Log:
        ``gradient_norms`` :math:`G_i`, ``targets``, ``training_rates`` :math:`r_i`; ``gradnorm_loss`` (a scalar);
        ``floor_hits`` and ``cap_hits``, the number of steps that ended with a task's weight at the floor or the cap. With
        ``patience``, ``stuck``: which tasks were taken out.

    Differs from the paper:
        The derivative by w is written down instead of taken by a second backward pass; it is the same. Adam's epsilon is
        relative to the tasks' mean gradient norm in the first measured step, so that no result depends on the unit of the
        losses. The paper says nothing of weights that become negative: here they stop at ``floor``, and the sum is kept.
        The paper has no priors, no cap, no absent tasks: means and renormalisation run over the tasks present, which keep
        the sum that they had together. It leaves stuck tasks to future work: here they count as absent while they are. Its
        training rates are those of the training losses; `observe` takes others.

        The sign in the derivative has no dead zone: at rest the weights chatter by about ``lr`` around the steady state.
        That is ``w_i`` proportional to ``r_i^alpha / norm(g_i)`` where the mean of ``r^alpha`` is 1; elsewhere the targets
        do not sum to what the norms sum to, and the rule as published settles off it by about that share.

        On an accelerator a negative loss later than a task's first step is not raised but skipped and counted, as raising
        would need a synchronisation in every step.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> from equipoise import Fork
        >>> fork = Fork(torch.nn.Linear(3, 2), tasks=("small", "large"))
        >>> balancer = GradNorm(fork, alpha=0.0)
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
    floor_hits: Tensor
    cap_hits: Tensor

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
        floor: float = 1e-3,
        cap: float | None = None,
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
        if not 0 < floor < 1:
            raise ValueError(f"floor must lie between 0 and 1, the mean of the weights; found {floor}")
        if cap is not None and not cap > 1:
            raise ValueError(f"cap must be more than 1, the mean of the weights; found {cap}")
        if cap is not None and patience is not None:
            raise ValueError(
                f"give cap or patience: either keeps a stuck task down; found cap={cap}, patience={patience}"
            )
        self._lr, self._betas, self._floor = lr, betas, floor
        self._cap = float(len(self.tasks)) if cap is None else cap
        ones = torch.ones_like(self.weights)
        self.register_buffer("unit", ones.new_zeros(()))
        Moments.register(self, ones)
        for name in ("floor_hits", "cap_hits"):
            self.register_buffer(name, torch.zeros_like(ones, dtype=torch.int64))

    def _rule(self, step: Step, task_norms: Tensor, active: Tensor, weights: Tensor) -> tuple[dict[str, Tensor], Log]:
        gradient_norms = step.weights * task_norms
        targets = gradnorm_targets(gradient_norms, step.training_rates, self.alpha, self.priors, active)
        unit = self.unit
        if not (is_free_to_read(unit) and unit > 0):
            unit = torch.where(unit > 0, unit, mean_over(task_norms, active))
        change, moments = adam(
            gradnorm_gradient(task_norms, gradient_norms, targets),
            Moments.of(self),
            active,
            lr=self._lr,
            betas=self._betas,
            eps=1e-8 * unit,
        )
        share = len(self.tasks) - torch.where(active, 0.0, weights).sum()
        weights = renormalise(weights + change, active, share, self._floor, self._cap)
        at_floor, at_cap = active & (weights <= self._floor), active & (weights >= self._cap)
        state = {
            "weights": weights,
            "unit": unit,
            **moments.state(),
            "floor_hits": self.floor_hits + at_floor,
            "cap_hits": self.cap_hits + at_cap,
        }
        log: Log = {
            "targets": partial(shown, targets, step.present),
            "gradnorm_loss": partial(gradnorm_loss, gradient_norms, targets, active),
            "floor_hits": state["floor_hits"],
            "cap_hits": state["cap_hits"],
        }
        return state, log
