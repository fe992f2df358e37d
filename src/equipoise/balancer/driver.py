"""One step of a balancer, from the plan to the new state; `Balancer` is its public face."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import partial
from math import isfinite
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from equipoise.balancer.checks import (
    check_arrivals,
    check_passes,
    check_source,
    keep_gradients,
    outside_domain,
    reads_without_sync,
)
from equipoise.balancer.losses import Losses
from equipoise.balancer.state import SavedState, initial_losses_after
from equipoise.balancer.step import Log, Step
from equipoise.balancer.total_loss import Note
from equipoise.engine import GradientSource
from equipoise.engine.modes import capturing
from equipoise.engine.processes import Processes


class Plan(NamedTuple):
    """One step's work: whether its losses are noted, the gradient norms measured, and the weights moved."""

    note: bool
    measure: bool
    move: bool


class Driver(SavedState, ABC):
    """Opens a step before its backward pass, reads it afterwards, and plans the next.

    The class attributes declare the needs of a method.
    """

    needs_norms: ClassVar[bool] = False
    """Whether the method moves its weights at measured steps only."""
    positive_losses: bool = False
    """Whether the method has no meaning where a loss is zero or negative."""
    weighs: ClassVar[bool] = False
    """Whether the weights of a step depend on its own losses; see `weigh`."""
    moves_absent: bool = False
    """Whether the method moves the weights of absent tasks too."""
    divides_by_initial: bool = False
    """Whether the method divides by ``L_i(0)``, which must be positive then."""
    compares_losses: bool = False
    """Whether the method takes ratios of losses, which must not be negative then."""
    _plan = Plan(False, False, False)
    _source: GradientSource | None
    _processes: Processes
    _token: object
    _every: int | None
    _start: int
    _accumulate: bool

    @abstractmethod
    def update(self, step: Step, state: Any) -> tuple[Tensor, Any, Log]:
        """The method: the weights after ``step``, the state, and quantities for the log. Writes to no buffer."""

    def weigh(self, step: Step, state: Any) -> Tensor:
        """The weights for the losses at hand ``(T,)``, for a method whose weights depend on them. Writes to no buffer."""
        return step.weights

    @property
    def priors(self) -> Tensor | float:
        """How important each task is ``(T,)``; 1 for a method that does not ask."""
        return 1.0

    def _open(self, given: Losses) -> None:
        """Before a backward pass: check the owner of the fork, clear it at the first, and look at new tasks."""
        now, source = self._now, self._source if self._plan.measure else None
        optimizer, earlier = self._stepping or (None, 0)
        several = earlier and (self._accumulate or source is None)  # passes before its step may be micro-batches
        if optimizer and now.passes and not (several and any(g.any() for g in gradients_of([optimizer]))):
            self.zero_grad()
        if source is not None:
            check_source(self, source)
            if now.passes == 0:
                source.clear()
            else:
                self._first.finish(self._probe.numbers, source, self.tasks)
        looks = len(self._first.seen) < len(self.tasks) or (source is not None and source.auditing)
        if looks and not capturing(self.weights.device):
            self._first.begin(self, given, source)
        now.present = given.present
        now.everyone = now.everyone is not False and given.present is None

    def _passed(self) -> None:
        """A backward pass has gone through the total loss."""
        self._now.passes += 1
        check_passes(self)

    def _noted_step(self, skip: bool, number: int) -> None:
        """Read the backward passes of this step, on ``number`` processes, and have the method move."""
        now, source = self._now, self._source if self._plan.measure else None
        note = self._probe.numbers
        if note is None and number == 1:  # of several processes, another may have had one
            raise RuntimeError(
                "balancer.step() comes after backward() on the balancer's total loss, taken in training mode; found no "
                "backward pass, or one for other gradients alone (inputs=...)"
            )
        if source is not None:
            if note is not None and not skip:
                check_arrivals(self, source)
                self._first.finish(note, source, self.tasks)
            if number > 1 and not (source.keep_gradients or source.at_features):
                keep_gradients(self, source)
        note = torch.zeros_like(self._probe.leaf) if note is None else note.detach()
        measured = None if source is None else source.measured()
        if number > 1:
            self._processes.agree(self.tasks)
            note, *rest = self._processes.mean(note, *([] if measured is None else [measured]))
            measured = next(iter(rest), None)
        norms = None if source is None or measured is None else source.norms(measured, number)
        self._advance(Note(*note.unbind()), norms, skip, number == 1 and bool(now.everyone))

    def _advance(self, note: Note, norms: Tensor | None, skip: bool, everyone: bool) -> None:
        """Have the method move, log the step, and keep the outcome.

        ``norms`` ``(T,)`` are those of the gradients that the backward passes have sent; None where they were not measured.
        ``everyone``: all tasks are known to be present.
        """
        on_host = reads_without_sync(note.present)
        here = None if everyone else note.present != 0  # None: all tasks are present
        if here is not None and on_host:
            if not here.any():
                names = ["losses", "weights", "training_rates"] + ["gradient_norms"] * (norms is not None)
                self._log.update(dict.fromkeys(names, (self.weights.clone(), here)))
                return
            here = None if here.all() else here
        step = self._step_of_note(note, norms, here, on_host)
        shown: dict[str, Any] = {"losses": step.losses, "weights": step.weights, "training_rates": step.training_rates}
        if step.norms is not None:
            shown["gradient_norms"] = partial(torch.mul, step.weights, step.norms)
        new, log = self._moved(step, here) if self._plan.move else ({}, {})
        self._log.update({name: (value, here) for name, value in {**shown, **log}.items()})
        self._keep(step, new, here, skip)

    def _moved(self, step: Step, here: Tensor | None) -> tuple[dict[str, Tensor], Log]:
        """The method's new weights and state by name, with the old entries of absent tasks; and quantities for the log."""
        old = self.state
        weights, state, log = self.update(step, old)
        new: dict[str, Tensor] = {}
        for name, was, now in zip(old._fields, old, state, strict=True):
            if now is not was:  # the entry of an absent task stays, in what has one for each
                new[name] = now if here is None or now.shape[-1:] != here.shape else torch.where(here, now, was)
        new["weights"] = weights if here is None or self.moves_absent else torch.where(here, weights, self.weights)
        return new, log

    def _keep(self, step: Step, new: dict[str, Tensor], here: Tensor | None, skip: bool) -> None:
        """Take over new weights and state, and L(0), where all of the step is finite and no ``skip`` is asked for."""
        needed = [step.losses] if step.norms is None or not self.needs_norms else [step.losses, step.norms]
        needed += [value for value in new.values() if value.is_floating_point()]
        if not self._settled:
            first = self.initial_seen < self._initial_steps
            first = first if here is None else first & here
            new["initial_losses"] = torch.where(first, step.initial_losses, self.initial_losses)
            new["initial_seen"] = self.initial_seen + first
        buffers: list[Any] = [self._buffers[name] for name in new]
        values, usable = [*new.values()], _all_finite(needed, step.on_host)
        if isinstance(usable, Tensor):  # on a device, which nothing here waits for
            if self.positive_losses or self.compares_losses:
                usable = usable & ~outside_domain(self, step.losses).any()
            some = torch.ones_like(usable) if here is None else here.any()
            usable = usable & (not skip)
            self.skipped_steps.add_(some & ~usable)
            usable = usable & some
            values = [torch.where(usable, now, was) for now, was in zip(values, buffers, strict=True)]
            here = usable.expand(len(step.weights)) if here is None else usable & here
        elif skip or not usable:
            self.skipped_steps.add_(1)
            return
        if values:
            torch._foreach_copy_(buffers, values)
        if self._plan.move:
            self.weight_sums.add_(step.weights if here is None else torch.where(here, step.weights, 0.0))
            self.weight_counts.add_(1 if here is None else here)

    def _step_of_note(self, note: Note, norms: Tensor | None, here: Tensor | None, on_host: bool) -> Step:
        """The step of which this is the note, with the norms ``(T,)`` of the gradients of its weighted losses."""
        losses = note.losses / (note.present if here is None else torch.where(here, note.present, 1.0))
        if self.weighs:  # the weights were made in the forward pass
            noted = note.weights / note.present
            weights = noted if here is None else torch.where(here, noted, self.weights)
        else:
            weights = self.weights.clone()  # they are about to move
        norms = None if norms is None else norms.to(losses.dtype) / (note.scale * weights).abs()
        return self._step_of(losses, weights, norms, here, self._now.steps, on_host)

    def _step_of(
        self, losses: Tensor, weights: Tensor, norms: Tensor | None, here: Tensor | None, number: int, on_host: bool
    ) -> Step:
        """A step as methods see it, from vectors ``(T,)``: harmless numbers where a task is not ``here``; None: all are."""
        initial = self.initial_losses
        if not self._settled:
            initial = initial_losses_after(initial, self.initial_seen, losses, self._initial_steps)
        step = Step(losses, weights, self._uniform, 1.0, initial, norms, number, on_host)
        if here is None:
            return step
        losses, initial = torch.where(here, losses, 1.0), torch.where(here, initial, 1.0)
        norms = None if norms is None else torch.where(here, norms, 1.0)
        return step._replace(losses=losses, initial_losses=initial, norms=norms).as_if_present(here)

    def _weights_for(self, given: Losses, *, alone: bool = False) -> Tensor:
        """The weights for these losses; ``alone`` without asking the other processes."""
        if not (self.weighs and self._plan.move):
            return self.weights
        weights = self.weights
        losses, here = given.values.detach().to(weights.dtype), self._mask(given.present)[0]
        everyone = given.present is None
        if not alone and self._processes.number > 1:
            losses, here = self._processes.mean_where(losses, here)
            everyone = False
        step = self._step_of(losses, weights, None, None if everyone else here, 0, False)
        found = self.weigh(step, self.state)
        return found if everyone else torch.where(here, found, weights)

    def _mask(self, present: tuple[bool, ...] | None) -> tuple[Tensor, Tensor]:
        """Which tasks are present, as bool and as number; made once for each case, as making it synchronises."""
        present = present or (True,) * len(self.tasks)
        if present not in self._masks:
            with torch.inference_mode(False):  # a later backward pass may keep it
                mask = torch.tensor(present, device=self.weights.device)
                self._masks[present] = mask, self._ones if all(present) else mask.to(self.weights.dtype)
        return self._masks[present]

    def _plan_next_step(self) -> None:
        """Decide whether the next step notes, measures and moves."""
        steps, source = self._now.steps, self._source
        looks = steps & (steps - 1) == 0  # a look, which waits for the device, is rare
        if looks and not self._settled and not self.initial_seen.is_meta:
            self._settled = bool((self.initial_seen >= self._initial_steps).all())
        measure = self._every is not None and steps % self._every == 0
        move = not self._frozen and steps >= self._start and (measure or not self.needs_norms)
        plan = Plan(measure or not self.needs_norms or not self._settled, measure, move)
        if plan != self._plan:  # a module's attributes are not set for nothing
            self._plan = plan
        if source is not None and self._every is not None and source.owner is self._token:
            source.plan(measure, gradients=self._accumulate, processes=self._processes)
            self._first.again = measure and not source.taps and self._first.due(steps // self._every)
            auditing = self._first.again or (measure and self._first.pending(self.tasks))
            if auditing != source.auditing:
                source.auditing = auditing
            source.forget_aliases()


def gradients_of(optimizers: Iterable[torch.optim.Optimizer]) -> list[Tensor]:
    """Those that are there: none after ``zero_grad()``, or zeros."""
    parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    return [p.grad for p in parameters if p.grad is not None]


def _all_finite(values: Sequence[Tensor], on_host: bool) -> Tensor | bool:
    joined = torch.cat([value if value.dim() == 1 else value.reshape(-1) for value in values])
    return all(map(isfinite, joined.tolist())) if on_host else torch.isfinite(joined).all()
