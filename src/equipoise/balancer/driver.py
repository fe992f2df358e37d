"""One step of a balancer, from the plan to the new state; `Balancer` is its public face."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

from equipoise.balancer.advance import advance, step_of
from equipoise.balancer.checks import check_arrivals, check_passes, check_source, keep_gradients
from equipoise.balancer.inspection import Inspection
from equipoise.balancer.losses import Losses
from equipoise.balancer.total_loss import Note
from equipoise.engine import GradientSource
from equipoise.engine.modes import capturing
from equipoise.engine.processes import Processes

if TYPE_CHECKING:
    from equipoise.balancer.balancer import Balancer


class Plan(NamedTuple):
    """One step's work: whether its losses are noted, the gradient norms measured, and the weights moved."""

    note: bool
    measure: bool
    move: bool


class Driver(Inspection):
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

    @property
    def _method(self) -> Balancer:
        return self  # type: ignore[return-value]

    def _open(self, given: Losses) -> None:
        """Before a backward pass: check the owner of the fork, clear it at the first, and look at new tasks."""
        now, source = self._now, self._source if self._plan.measure else None
        if source is not None:
            check_source(self._method, source)
            if self._in_closure and not (self._accumulate and source.has_gradient()):
                self.zero_grad()
            if now.passes == 0:
                source.clear()
            elif now.passes == 1:
                self._first.finish(self._probe.numbers, source, self.tasks)
        first = self._first.new(self.tasks, source is not None) or (source and source.auditing)
        if first and now.passes == 0 and not capturing(self.weights.device):
            self._first.begin(self._method, given, source)
        now.present = given.present
        now.everyone = now.everyone is not False and given.present is None

    def _passed(self) -> None:
        """A backward pass has gone through the total loss."""
        self._now.passes += 1
        check_passes(self._method)

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
                check_arrivals(self._method, source)
                if now.passes == 1:
                    self._first.finish(note, source, self.tasks)
            if number > 1 and not (source.keep_gradients or source.at_features):
                keep_gradients(self._method, source)
        note = torch.zeros_like(self._probe.leaf) if note is None else note.detach()
        measured = None if source is None else source.measured()
        if number > 1:
            self._processes.agree(self.tasks)
            note, *rest = self._processes.mean(note, *([] if measured is None else [measured]))
            measured = next(iter(rest), None)
        norms = None if source is None or measured is None else source.norms(measured, number)
        advance(self._method, Note(*note.unbind()), norms, skip, number == 1 and bool(now.everyone))

    def _weights_for(self, given: Losses, *, alone: bool = False) -> Tensor:
        """The weights for these losses; ``alone`` without asking the other processes."""
        if not (self.weighs and self._plan.move):
            return self.weights
        method, weights = self._method, self.weights
        losses, here = given.values.detach().to(weights.dtype), self._mask(given.present)[0]
        everyone = given.present is None
        if not alone and self._processes.number > 1:
            losses, here = self._processes.mean_where(losses, here)
            everyone = False
        step = step_of(method, losses, weights, None, None if everyone else here, 0, False)
        found = method.weigh(step, self.state)
        return found if everyone else torch.where(here, found, weights)

    def _mask(self, present: tuple[bool, ...] | None) -> tuple[Tensor, Tensor]:
        """Which tasks are present, as bool and as number; made once for each case, as making it synchronises."""
        present = present or (True,) * len(self.tasks)
        if present not in self._masks:
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
