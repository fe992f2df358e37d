"""The audit of a task's first step: its gradient must reach the trunk through its own alias, or it is not combined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import isfinite, nan

import torch
from torch import Tensor

from equipoise.balancer.first_step import FirstStep
from equipoise.combine.combination import Call
from equipoise.engine import Fork
from equipoise.engine.audit import tolerance, wrapper_of
from equipoise.engine.autograd_rule import flat


def audit(fork: Fork, calls: Sequence[Call], first: FirstStep, losses: Mapping[str, Tensor]) -> None:
    """Compare the gradients of new tasks at the features and the last shared layer with those that pass the task's alias.

    ``first`` takes down which tasks were audited, and the largest deviation or why there is none; a gradient that comes
    by another way is a ValueError that names the task and the way.
    """
    layer: Sequence[Tensor] = [] if fork.shared_layer is None else list(fork.shared_layer.parameters())
    below = [tensor for tensor in (*(f for call in calls for f in call.features), *layer) if tensor.requires_grad]
    if not any(feature.requires_grad for call in calls for feature in call.features):
        return
    for task, loss in losses.items():
        first.left_out = wrapper_of([loss], layer)
        try:
            deviation = nan if first.left_out else _deviation(fork, calls, below, task, loss)
        except RuntimeError as error:  # a part of the graph that can be used once only
            first.left_out, deviation = str(error).splitlines()[0], nan
        if deviation > tolerance(tensor.dtype for tensor in (loss, *below)):
            raise ValueError(
                f"task {task!r}: its loss must reach the trunk through {fork.reads.format(task)} alone; found that it also "
                "reaches it past the fork, where its gradient is not combined"
            )
        if first.left_out or isfinite(deviation):  # else an overflow, which a loss scaler skips: audited next time
            first.audited.add(task)
            before = deviation if first.deviation is None else first.deviation.item()
            first.deviation = torch.tensor(deviation if deviation != deviation else max(before, deviation))


def _deviation(fork: Fork, calls: Sequence[Call], below: Sequence[Tensor], task: str, loss: Tensor) -> float:
    """How far the gradients of ``below`` are from those that pass the task's alias, relative to the larger."""
    places = [place for call in calls for place in product((*fork.tasks, *fork.others), call.features)]
    aliases = [alias for call in calls for alias in call.aliases]
    found = torch.autograd.grad(loss, [*below, *aliases], retain_graph=True, allow_unused=True)
    arrived = [(*place, g) for place, g in zip(places, found[len(below) :], strict=True) if g is not None]
    wrong = sorted({fork.reads.format(name) for name, _, g in arrived if name != task and g.any()})
    if wrong:
        raise ValueError(
            f"task {task!r}: its loss must depend on {fork.reads.format(task)} alone; found that it reads {', '.join(wrong)}: "
            "every head must read its own"
        )
    own = [(feature, g) for name, feature, g in arrived if name == task and feature.requires_grad]
    part: Sequence[Tensor | None] = [None] * len(below)
    if own:
        outputs, gradients = zip(*own, strict=True)
        part = torch.autograd.grad(outputs, below, gradients, retain_graph=True, allow_unused=True)
    whole, through = flat(below, found[: len(below)]).double(), flat(below, part).double()
    larger = torch.maximum(whole.norm(), through.norm())
    return float((whole - through).norm() / torch.where(larger > 0, larger, 1.0))
