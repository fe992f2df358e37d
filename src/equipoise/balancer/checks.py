"""A step refused before it moves anything: losses without a meaning for the method, gradients that are not of the step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from equipoise.balancer.losses import Losses
from equipoise.balancer.masking import reads_without_sync
from equipoise.engine import GradientSource

if TYPE_CHECKING:
    from equipoise.balancer.balancer import Balancer


def check_arrivals(balancer: Balancer, source: GradientSource) -> None:
    """Refuse a step whose measurement is not of the total loss alone, or not of all its tasks."""
    present = balancer._now.present or (True,) * len(balancer.tasks)
    if source.passes > balancer._now.passes:
        raise RuntimeError(
            f"the fork has seen {source.passes} backward passes since the last step, of which {balancer._now.passes} "
            "came from the "
            "balancer's total loss: differentiate other losses before balancer(losses), or in a forward pass of their own "
            "in eval() or from Fork(..., others=('name',))"
        )
    if repeated := source.repeated():
        raise RuntimeError(
            f"task {repeated[0]!r}: its gradient has arrived at several calls of the fork, whose norms do not add up: where a "
            f"step calls the fork several times, {type(balancer).__name__}(..., accumulate=True) keeps gradients, which do"
        )
    missing = [] if torch.compiler.is_compiling() else source.not_arrived(present)
    if missing:
        raise RuntimeError(
            f"task {missing[0]!r}: no gradient of its loss has arrived where it is measured: "
            f"{source.why_not(missing[0])}. Hand in None where a batch has no labels for the task"
        )


def check_values(balancer: Balancer, given: Losses) -> None:
    """Refuse losses that have no meaning for the method; on an accelerator that would wait for the device."""
    if not (balancer.positive_losses or balancer.compares_losses) or not reads_without_sync(given.values):
        return
    values = given.values.detach()
    least = (
        float(values.min())
        if given.present is None
        else min(
            value for value, here in zip(values.tolist(), given.present, strict=True) if here or not any(given.present)
        )
    )
    if least < 0 or (balancer.positive_losses and least == 0 and (given.present is None or any(given.present))):
        task = next(t for t, v in zip(balancer.tasks, values.tolist(), strict=True) if v == least)
        if balancer.positive_losses:
            raise ValueError(f"task {task!r}: {type(balancer).__name__} needs positive losses; found {least}")
        raise ValueError(
            f"task {task!r}: a loss must not be negative with alpha > 0, since a ratio of losses then has no meaning; "
            f"found {least}. alpha=0 needs no ratios"
        )
