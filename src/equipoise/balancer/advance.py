"""From the note of a step to the new state: absent tasks and steps that are not finite, once for all methods."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from equipoise.balancer.checks import outside_domain, reads_without_sync
from equipoise.balancer.state import initial_losses_after
from equipoise.balancer.step import Log, Step
from equipoise.balancer.total_loss import Note

if TYPE_CHECKING:
    from equipoise.balancer.balancer import Balancer


def advance(balancer: Balancer, note: Note, norms: Tensor | None, skip: bool, everyone: bool) -> None:
    """Have the method move, keep the outcome where all of it is finite, and log the step.

    Args:
        balancer: The balancer.
        note: The note of the step.
        norms: The norms of the gradients that the backward passes have sent ``(T,)``; None where they were not measured.
        skip: Keep nothing, and count the step as skipped.
        everyone: Whether all tasks are known to be present.
    """
    on_host, weights = reads_without_sync(note.present), balancer.weights
    here = None if everyone else note.present != 0  # None: all tasks are present
    if here is not None and on_host:
        if not here.any():
            names = ["losses", "weights", "training_rates"] + ["gradient_norms"] * (norms is not None)
            balancer._log.update(dict.fromkeys(names, (weights.clone(), here)))
            return
        here = None if here.all() else here
    losses = note.losses / (note.present if here is None else torch.where(here, note.present, 1.0))
    if balancer.weighs:  # the weights were made in the forward pass
        noted = note.weights / note.present
        weights = noted if here is None else torch.where(here, noted, weights)
    else:
        weights = weights.clone()  # they are about to move
    norms = None if norms is None else norms.to(losses.dtype) / (note.scale * weights)
    step = step_of(balancer, losses, weights, norms, here, balancer._now.steps, on_host)
    log: Log = {}
    new: dict[str, Tensor] = {}
    needed = [step.losses] if step.norms is None or not balancer.needs_norms else [step.losses, step.norms]
    if balancer._plan.move:
        old = balancer.state
        moved, state, log = balancer.update(step, old)
        for name, was, now in zip(old._fields, old, state, strict=True):
            if now is not was:  # the entry of an absent task stays, in what has one for each
                new[name] = now if here is None or now.shape[-1:] != here.shape else torch.where(here, now, was)
        new["weights"] = moved if here is None or balancer.moves_absent else torch.where(here, moved, balancer.weights)
        needed += [value for value in new.values() if value.is_floating_point()]
    if not balancer._settled:
        first = balancer.initial_seen < balancer._initial_steps
        first = first if here is None else first & here
        new["initial_losses"] = torch.where(first, step.initial_losses, balancer.initial_losses)
        new["initial_seen"] = balancer.initial_seen + first
    shown: dict[str, Any] = {"losses": step.losses, "weights": weights, "training_rates": step.training_rates}
    if step.norms is not None:
        shown["gradient_norms"] = partial(torch.mul, weights, step.norms)
    balancer._log.update({name: (value, here) for name, value in {**shown, **log}.items()})
    buffers: list[Any] = [balancer._buffers[name] for name in new]
    values, usable = [*new.values()], _all_finite(needed, on_host)
    if isinstance(usable, Tensor):  # on a device, which nothing here waits for
        if balancer.positive_losses or balancer.compares_losses:
            usable = usable & ~outside_domain(balancer, step.losses).any()
        some = torch.ones_like(usable) if here is None else here.any()
        usable = usable & (not skip)
        balancer.skipped_steps.add_(some & ~usable)
        usable = usable & some
        values = [torch.where(usable, now, was) for now, was in zip(values, buffers, strict=True)]
        here = usable.expand(len(weights)) if here is None else usable & here
    elif skip or not usable:
        balancer.skipped_steps.add_(1)
        return
    if values:
        torch._foreach_copy_(buffers, values)
    if balancer._plan.move:
        balancer.weight_sums.add_(weights if here is None else torch.where(here, weights, 0.0))
        balancer.weight_counts.add_(1 if here is None else here)


def step_of(
    balancer: Balancer,
    losses: Tensor,
    weights: Tensor,
    norms: Tensor | None,
    here: Tensor | None,
    number: int,
    on_host: bool,
) -> Step:
    """A step as methods see it, from vectors ``(T,)``: harmless numbers where a task is not ``here``; None: all are."""
    initial = balancer.initial_losses
    if not balancer._settled:
        initial = initial_losses_after(initial, balancer.initial_seen, losses, balancer._initial_steps)
    step = Step(losses, weights, balancer._uniform, 1.0, initial, norms, number, on_host)
    if here is None:
        return step
    losses, initial = torch.where(here, losses, 1.0), torch.where(here, initial, 1.0)
    norms = None if norms is None else torch.where(here, norms, 1.0)
    return step._replace(losses=losses, initial_losses=initial, norms=norms).as_if_present(here)


def _all_finite(values: Sequence[Tensor], on_host: bool) -> Tensor | bool:
    joined = torch.cat([value if value.dim() == 1 else value.reshape(-1) for value in values])
    return all(map(isfinite, joined.tolist())) if on_host else torch.isfinite(joined).all()
