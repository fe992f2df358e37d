"""GradNorm (Chen, Badrinarayanan, Lee and Rabinovich 2018): the paper's equations, and the state between two steps."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, final

import torch
from torch import Tensor

from equipoise.arguments import SMALLEST, ByTask, number
from equipoise.balancer import Log, Step
from equipoise.engine import GradientSource
from equipoise.methods.adam import adam, check_betas
from equipoise.methods.gradnorm_family import GradNormFamily


def gradnorm_targets(norms: Tensor, ratios: Tensor, alpha: float, priors: Tensor | float, step: Step) -> Tensor:
    r"""The norm that each task's gradient should have, :math:`\bar G \, p_i \, r_i^\alpha` (Equation 1).

    :math:`\bar G` is the mean of the norms :math:`G_i`, and :math:`r_i` is the loss ratio :math:`\tilde L_i` over the
    mean of the loss ratios. A constant where ``L_grad`` is differentiated.
    """
    wanted = step.relative(ratios) ** alpha
    return step.mean(norms) * (wanted * priors if isinstance(priors, Tensor) else wanted)


def gradnorm_loss(gradient_norms: Tensor, targets: Tensor, step: Step) -> Tensor:
    r""":math:`L_\mathrm{grad} = \sum_i | G_i - \mathrm{target}_i |` (Equation 2), over the tasks present."""
    return ((gradient_norms - targets).abs() * step.uniform.sign()).sum()


def gradnorm_gradient(task_norms: Tensor, gradient_norms: Tensor, targets: Tensor) -> Tensor:
    r""":math:`\partial L_\mathrm{grad} / \partial w_i = \lVert g_i \rVert \, \mathrm{sign}(G_i - \mathrm{target}_i)`.

    Exact and of first order, since :math:`G_i = w_i \lVert g_i \rVert` and the target is a constant.
    """
    return task_norms * (gradient_norms - targets).sign()


def renormalise(weights: Tensor, step: Step, floor: float, cap: float) -> tuple[Tensor, bool]:
    r"""Scale the weights of the tasks present so that all weights sum to T, none below ``floor`` or above ``cap``.

    The paper's renormalisation :math:`w_i T / \sum_j w_j` (Algorithm 1), and `within_bounds` where a bound is met.

    Returns:
        The weights ``(T,)``, and whether one of them may have met a bound.
    """
    if step.on_host and isinstance(step.mean_weight, float):
        smallest, factor = weights.min().item(), step.mean_weight / step.mean(weights).item()
        if smallest > 0 and smallest * factor > floor and cap >= len(weights):
            return weights * factor, False
    return within_bounds(weights, step, floor, cap), True


def within_bounds(weights: Tensor, step: Step, floor: float, cap: float) -> Tensor:
    r"""The weights :math:`\min(\max(c\,w_i, \mathrm{floor}), \mathrm{cap})` ``(T,)`` with the one c that gives the sum.

    The sum over the tasks is piecewise linear in c: a task's share grows with slope w_i from c = floor / w_i on, up to
    c = cap / w_i. The kinks are walked along to the one before the sum that is wanted. Weights below the floor count as the
    floor; the step says which tasks are present, and the sum that all weights are to have.
    """
    positive = weights.clamp(min=floor)
    present = step.uniform.sign()
    number = present.sum()
    total = step.mean_weight * number
    slopes = positive * present
    kinks, order = torch.cat([floor / positive, cap / positive]).sort()
    slope = torch.cat([slopes, -slopes])[order].cumsum(0)
    rise = (slope[:-1] * kinks.diff()).cumsum(0)
    sums = floor * number + torch.cat([rise.new_zeros(1), rise])
    # One index, but in a vector: an index without dimensions would be read on the host.
    last = ((sums <= total).sum(0, keepdim=True) - 1).clamp(min=0, max=len(kinks) - 2)
    slope_there = slope.index_select(0, last).clamp(min=torch.finfo(slope.dtype).tiny)
    low, high = kinks.index_select(0, last), kinks.index_select(0, last + 1)
    scale = low + (total - sums.index_select(0, last)) / slope_there
    scale = scale.clamp(low, high)  # between kinks where every task is at a bound, any c will do
    return (scale * positive).clamp(floor, cap)


class State(NamedTuple):
    """Adam's moments, the unit of its epsilon ``()``, steps at floor and cap, the first and last losses observed or 0."""

    adam_mean: Tensor
    adam_square: Tensor
    adam_count: Tensor
    unit: Tensor
    floor_hits: Tensor
    cap_hits: Tensor
    observed_first: Tensor
    observed_last: Tensor


@final
class GradNorm(GradNormFamily):
    r"""Weights that balance the norms of the tasks' gradients at the last shared layer, and let slow tasks catch up.

    With :math:`g_i` the gradient of the unweighted loss :math:`L_i` at the weight W of the last shared layer:

    .. math::
        G_i = w_i \lVert g_i \rVert, \qquad r_i = \frac{L_i(t) / L_i(0)}{\mathrm{mean}_j L_j(t) / L_j(0)}, \qquad
        L_\mathrm{grad} = \sum_i \left| G_i - \bar G \, r_i^\alpha \right|,

    the target :math:`\bar G r_i^\alpha` held constant. Each step takes one step of Adam on w along
    :math:`\partial L_\mathrm{grad} / \partial w_i`, then renormalises so that :math:`\sum_i w_i = T`. The network
    trains on :math:`\sum_i w_i L_i` with the weights from before the step.

    When to use:
        After equal weights and `InverseInitialLoss`: gradient norms at a shared trunk differ about tenfold, and some
        tasks learn more slowly than others. The weights move by about ``lr`` a step; where the norms change faster than
        they can follow, take `GradNormClosedForm`.

    Args:
        fork: Where the network splits into tasks: a `Fork`, or the result of `attach` or `PerLoss`.
        alpha: How strongly slow tasks are favoured: 0 makes the norms equal, larger values pull harder. At least 0.
        lr: Adam's learning rate for w: about the largest change of a weight in one step.
        betas: Adam's decay rates.
        priors: How important a task is, by name: its target is multiplied by it. Scaled to a mean of 1.
        floor: The smallest weight, between 0 and 1; without it Adam's steps could carry a small one past zero.
        cap: The largest weight; more than 1. ``None``: T, which no weight can pass. It limits the weight of a task that
            cannot be learnt, which would keep growing (the paper's stated limitation).
        every, start, accumulate, initial_losses, initial_steps: See `Balancer`.
        initial_weights: See `Balancer`; ``"balanced"`` is multiplied by the priors.

    Raises:
        TypeError, ValueError: A setting is of another type or out of its range; later, by task name, a first loss is
            not finite and positive, or, where alpha > 0, a loss is negative. (On an accelerator skipped.)

    Log:
        ``gradient_norms`` :math:`G_i` and ``targets``, in loss per unit of W; ``training_rates`` :math:`r_i`;
        ``gradnorm_loss``; ``floor_hits`` and ``cap_hits``, the steps that ended at the floor or the cap.

    Differs from the paper:
        The derivative by w is written down instead of taken by a second backward pass; it is the same. Adam's epsilon
        is relative to the mean gradient norm in the first measured step, so that no result depends on the unit of the
        losses; norms below about 1e-19 vanish in the square of float32, and such weights never move. Weights that would
        become negative stop at ``floor``, and the sum is kept. The paper has no priors, no cap, no absent tasks: means
        and renormalisation run over the tasks present, which keep the sum that they had together.

        Settled weights oscillate by about ``lr`` around the steady state, since the derivative is a sign. That state is
        ``w_i`` in proportion to ``r_i^alpha / norm(g_i)`` where the mean of ``r^alpha`` is 1; elsewhere the rule as
        published settles beside it (by 4.4 % if the sums of norms and targets differ by 1.8 %; by 27 % if by 11 %).
        Where all norms lie below their targets, Adam with the renormalisation still changes the weights.

    Example:
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
        floor: float = 1e-3,
        cap: float | None = None,
    ) -> None:
        super().__init__(fork, alpha, priors, every, start, accumulate, initial_losses, initial_steps, initial_weights)
        self._lr, self._betas = number("lr", lr, "(0, inf)"), check_betas(betas)
        self._floor = number("floor", floor, "(0, 1)")
        self._cap = float(len(self.tasks)) if cap is None else number("cap", cap, "(1, inf)")
        self.reset_parameters()

    def init_state(self, weights: Tensor) -> tuple[Tensor, State]:
        """Nothing measured yet."""
        hits, zeros = torch.zeros_like(weights, dtype=torch.int64), torch.zeros_like(weights)
        return weights, State(zeros, zeros, zeros, weights.new_zeros(()), hits, hits, zeros, zeros)

    def update(self, step: Step, state: State) -> tuple[Tensor, State, Log]:
        """One step of Adam along the gradient of ``L_grad``, and the renormalisation (Algorithm 1)."""
        assert step.norms is not None
        gradient_norms = step.weights * step.norms
        ratios = self.ratios(step, state)
        targets = gradnorm_targets(gradient_norms, ratios, self.alpha, self.priors, step)
        unit = state.unit
        if not (step.on_host and unit.item() > 0):
            unit = torch.where(unit > 0, unit, step.mean(step.norms))
        gradient = gradnorm_gradient(step.norms, gradient_norms, targets)
        change, state = adam(gradient, state, lr=self._lr, betas=self._betas, eps=1e-8 * unit + SMALLEST)
        weights, bounded = renormalise(step.weights + change, step, self._floor, self._cap)
        at_floor, at_cap = state.floor_hits, state.cap_hits
        if bounded:
            at_floor, at_cap = at_floor + (weights <= self._floor), at_cap + (weights >= self._cap)
        loss = partial(gradnorm_loss, gradient_norms, targets, step)
        log: Log = {"targets": targets, "training_rates": partial(step.relative, ratios), "gradnorm_loss": loss}
        state = state._replace(unit=unit, floor_hits=at_floor, cap_hits=at_cap)
        return weights, state, {**log, "floor_hits": at_floor, "cap_hits": at_cap}
