"""From the note of a step to the new state: absent tasks, steps that are not finite, and the log, once for all methods."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from equipoise.balancer.masking import all_finite, keep_where, nan_where_absent, reads_without_sync
from equipoise.balancer.state import initial_losses_after
from equipoise.balancer.step import Log, Step
from equipoise.balancer.total_loss import Note

if TYPE_CHECKING:
    from equipoise.balancer.balancer import Balancer


def advance(
    balancer: Balancer, note: Note, norms: Tensor | None, skip: bool, everyone: bool
) -> dict[str, Tensor | Callable[[], Tensor]]:
    """Have the method move, and keep the outcome where all of it is finite.

    Args:
        balancer: The balancer.
        note: The note of the step.
        norms: The norms of the gradients that the backward passes have sent ``(T,)``; None where they were not measured.
        skip: Keep nothing, and count the step as skipped.
        everyone: Whether all tasks are known to be present.

    Returns:
        What the log shows of the step.
    """
    free = reads_without_sync(note.present)
    here = None if everyone else note.present != 0  # None: all tasks are present
    if here is not None and free:
        if not here.any():
            nan = torch.full_like(note.losses, float("nan"))
            nothing = {"losses": nan, "weights": balancer.weights.clone(), "training_rates": nan}
            return {**nothing} if norms is None else {**nothing, "gradient_norms": nan}
        here = None if here.all() else here
    losses = note.losses / (note.present if here is None else torch.where(here, note.present, 1.0))
    if balancer.weighs:
        weights = note.weights / note.present
        weights = weights if here is None else torch.where(here, weights, balancer.weights)
    else:
        weights = balancer.weights.clone()  # they are about to move
    norms = None if norms is None else norms.to(losses.dtype) / (note.scale * weights)
    step = step_of(balancer, losses, weights, norms, here)
    old = balancer.state
    log: Log = {}
    new: dict[str, Tensor] = {}
    if balancer._plan.move:
        moved, state, log = balancer.update(step._replace(number=balancer._steps), old)
        before = zip(state._fields, old, state, strict=True)
        new = {
            name: now if here is None else keep_where(~here, was, now) for name, was, now in before if now is not was
        }
        new["weights"] = moved if here is None or balancer.moves_absent else torch.where(here, moved, balancer.weights)
    needed = [step.losses, *new.values()]
    if step.norms is not None and balancer.needs_norms:
        needed.append(step.norms)
    usable = all_finite([value for value in needed if value.is_floating_point()])
    if not free:
        usable = usable & _in_domain(balancer, step.losses)
    if not balancer._settled:
        first = balancer.initial_seen < balancer._initial_steps
        first = first if here is None else first & here
        new["initial_losses"] = torch.where(first, step.initial_losses, balancer.initial_losses)
        new["initial_seen"] = balancer.initial_seen + first
    _keep(balancer, new, weights, here, usable, skip)
    shown: dict[str, Tensor | Callable[[], Tensor]] = {
        "losses": partial(nan_where_absent, losses, here),
        "weights": weights,
        "training_rates": partial(_training_rates, step, here),
    }
    if norms is not None:
        shown["gradient_norms"] = partial(_gradient_norms, step, here)
    return shown | {name: partial(_shown, value, here) for name, value in log.items()}


def step_of(balancer: Balancer, losses: Tensor, weights: Tensor, norms: Tensor | None, here: Tensor | None) -> Step:
    """A step as methods see it: harmless numbers for absent tasks.

    Args:
        balancer: The balancer.
        losses: The losses ``(T,)``.
        weights: Their weights ``(T,)``.
        norms: The norms of their gradients ``(T,)``, or None.
        here: Which tasks are present ``(T,)``, bool; None: all.
    """
    initial = balancer.initial_losses
    if not balancer._settled:
        initial = initial_losses_after(initial, balancer.initial_seen, losses, balancer._initial_steps)
    if here is None:
        return Step(losses, weights, balancer._uniform, 1.0, initial, norms, 0)
    uniform = here.to(losses.dtype)
    number = uniform.sum()
    kept = (weights * (1 - uniform)).sum()
    return Step(
        torch.where(here, losses, 1.0),
        weights,
        uniform / number,
        (len(balancer.tasks) - kept) / number,
        torch.where(here, initial, 1.0),
        None if norms is None else torch.where(here, norms, 1.0),
        0,
    )


def training_rates(losses: Tensor, initial_losses: Tensor, step: Step) -> Tensor:
    r"""The relative inverse training rates ``(T,)``, :math:`r_i = \tilde L_i / \mathrm{mean}_j \tilde L_j`.

    :math:`\tilde L_i = L_i(t) / L_i(0)`; ``r_i > 1`` means that task i is slow. The mean runs over the tasks present.

    References:
        Chen et al. 2018, GradNorm, section 3.1.
    """
    ratios = losses / initial_losses
    return ratios / step.mean(ratios)


def _training_rates(step: Step, here: Tensor | None) -> Tensor:
    return nan_where_absent(training_rates(step.losses, step.initial_losses, step), here)


def _gradient_norms(step: Step, here: Tensor | None) -> Tensor:
    assert step.norms is not None
    return nan_where_absent(step.weights * step.norms, here)


def _shown(value: Tensor | Callable[[], Tensor], here: Tensor | None) -> Tensor:
    found = value() if callable(value) else value
    return nan_where_absent(found, here) if found.dim() == 1 and found.is_floating_point() else found


def _in_domain(balancer: Balancer, losses: Tensor) -> Tensor | bool:
    """Whether the losses are such as the method has a meaning for; on the host that was checked in the forward pass."""
    if balancer.positive_losses:
        return (losses > 0).all()
    return (losses >= 0).all() if balancer.compares_losses else True


def _keep(
    balancer: Balancer, new: dict[str, Tensor], weights: Tensor, here: Tensor | None, usable: Tensor | bool, skip: bool
) -> None:
    """Write the new state to the buffers, where the step is usable; ``here`` is None where all tasks are present."""
    buffers: list[Tensor] = [balancer.get_buffer(name) for name in new]
    values = [*new.values()]
    counted: Tensor | int = 1 if here is None else here
    if isinstance(usable, bool) or reads_without_sync(usable):
        if skip or not usable:
            balancer.skipped_steps.add_(1)
            return
    else:
        usable = usable & (not skip)
        some = torch.ones_like(usable) if here is None else here.any()
        balancer.skipped_steps.add_(some & ~usable)
        usable = usable & some
        values = [torch.where(usable, now, was) for now, was in zip(values, buffers, strict=True)]
        counted = usable & counted if here is not None else usable.expand(len(weights))
    if values:
        torch._foreach_copy_(buffers, values)
    if balancer._plan.move:
        balancer.weight_sums.add_(weights if isinstance(counted, int) else torch.where(counted, weights, 0.0))
        balancer.weight_counts.add_(counted)
