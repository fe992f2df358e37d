"""From the note of a step to the new state: absent tasks, steps that are not finite, and the log, once for all methods."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from equipoise.balancer.masking import all_finite, keep_where, nan_where_absent, reads_without_sync
from equipoise.balancer.state import initial_losses_after
from equipoise.balancer.step import Step
from equipoise.balancer.total_loss import Note

if TYPE_CHECKING:
    from equipoise.balancer.balancer import Balancer


def advance(balancer: Balancer, note: Note, norms: Tensor | None, skip: bool) -> dict[str, Tensor | Callable[[], Tensor]] | None:
    """Have the method move, and keep the outcome where all of it is finite.

    Args:
        balancer: The balancer.
        note: The note of the step.
        norms: The norms of the gradients that the backward passes have sent ``(T,)``; None where they were not measured.
        skip: Keep nothing, and count the step as skipped.

    Returns:
        What the log shows of the step; None where there was none, for no task was present.
    """
    free = reads_without_sync(note.present)
    here = note.present != 0
    everyone = free and bool(here.all())
    if free and not everyone and not here.any():
        return None
    losses = note.losses / (note.present if everyone else torch.where(here, note.present, 1.0))
    weights = note.weights / note.scale if balancer.weighs else balancer.weights.clone()  # they are about to move
    norms = None if norms is None else norms.to(losses.dtype) / note.weights
    step = step_of(balancer, losses, weights, norms, None if everyone else here)
    old, log = {"weights": balancer.weights, **balancer.state._asdict()}, {}
    new: dict[str, Tensor] = {}
    if balancer._plan.move:
        moved, state, log = balancer.update(step._replace(number=balancer._steps), balancer.state)
        new = {"weights": moved, **state._asdict()}
        if not everyone:
            new = {name: keep_where(~here, old[name], value) for name, value in new.items()}
    needed = [step.losses, *new.values()] if norms is None else [step.losses, step.norms, *new.values()]
    usable = all_finite([value for value in needed if value.is_floating_point()])
    if not free:
        usable = usable & _in_domain(balancer, step.losses, here) & (not skip)
    if not balancer._settled:
        new |= {
            "initial_losses": torch.where(here, step.initial_losses, balancer.initial_losses),
            "initial_seen": balancer.initial_seen + (here & (balancer.initial_seen < balancer._initial_steps)),
        }
    _keep(balancer, new, step.weights, None if everyone else here, usable, skip)
    shown: dict[str, Tensor | Callable[[], Tensor]] = {
        "losses": partial(nan_where_absent, step.losses, here),
        "weights": step.weights,
        "training_rates": partial(_training_rates, step, here),
    }
    if norms is not None:
        shown["gradient_norms"] = partial(nan_where_absent, step.weights * step.norms, here)
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


def _training_rates(step: Step, here: Tensor) -> Tensor:
    return nan_where_absent(training_rates(step.losses, step.initial_losses, step), here)


def _shown(value: Tensor | Callable[[], Tensor], here: Tensor) -> Tensor:
    found = value() if callable(value) else value
    return nan_where_absent(found, here) if found.dim() == 1 and found.is_floating_point() else found


def _in_domain(balancer: Balancer, losses: Tensor, here: Tensor) -> Tensor:
    """Whether the losses are such as the method has a meaning for; on the host that was checked in the forward pass."""
    if balancer.positive_losses:
        return (losses > 0).all()
    if balancer.compares_losses:
        return (losses >= 0).all()
    return here.any() | ~here.any()


def _keep(
    balancer: Balancer, new: dict[str, Tensor], weights: Tensor, here: Tensor | None, usable: Tensor, skip: bool
) -> None:
    """Write the new state to the buffers, where the step is usable; ``here`` is None where all tasks are present."""
    buffers, values = [getattr(balancer, name) for name in new], [*new.values()]
    counted: Tensor | int = 1 if here is None else here
    if reads_without_sync(usable):
        if skip or not usable:
            balancer.skipped_steps += 1
            return
    else:
        some = here.any() if here is not None else usable | True
        balancer.skipped_steps += some & ~usable
        usable = usable & some
        values = [torch.where(usable, *pair) for pair in zip(values, buffers, strict=True)]
        counted = usable & counted if here is not None else usable
    if values:
        torch._foreach_copy_(buffers, values)
    if balancer._plan.move:
        balancer.weight_sums += weights if isinstance(counted, int) else torch.where(counted, weights, 0.0)
        balancer.weight_counts += counted
