"""Weights with a given sum, none of them outside of two bounds."""

from __future__ import annotations

import torch
from torch import Tensor

from equipoise.balancer import Step


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
