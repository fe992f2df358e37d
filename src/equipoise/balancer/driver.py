"""One step of a balancer, from the plan to the new state; `Balancer` is its public face."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor

from equipoise.arguments import numbers_by_task, one_of
from equipoise.balancer.advance import advance, step_of
from equipoise.balancer.checks import check_arrivals
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

    The class attributes say what a method needs.
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
    _source: GradientSource | None
    _processes: Processes
    _plan: Plan
    _token: object
    _every: int | None
    _start: int
    _accumulate: bool

    @property
    def _method(self) -> Balancer:
        return cast("Balancer", self)

    def _open(self, given: Losses) -> None:
        """Before a backward pass: whose is the fork, what lies there from before the step, and which tasks are new."""
        source = self._source if self._plan.measure else None
        if source is not None:
            if source.owner is not self._token:
                raise RuntimeError(
                    f"{type(self).__name__}: another balancer, made from this fork later, measures at it; one fork serves one "
                    "balancer that measures. Make one that only weighs from the names of the tasks, or with every=None"
                )
            if source.joins and self._join_config is None:
                raise RuntimeError(
                    "DistributedDataParallel.join: a process without batches does not come to the balancer's step(), for "
                    "which the others wait. Write torch.distributed.algorithms.Join([model, balancer]) instead"
                )
            if self._in_closure and not (self._accumulate and source.has_gradient()):
                self.zero_grad()
            if self._now.passes == 0:
                source.clear()
            elif self._now.passes == 1:
                self._first.finish(self._probe.numbers, source, self.tasks)
        first = self._first.new(self.tasks, source is not None) or (source and source.auditing)
        if first and self._now.passes == 0 and not capturing(self.weights.device):
            self._first.begin(self._method, given, source)
        self._now.present = given.present
        self._now.everyone = self._now.everyone is not False and given.present is None

    def _passed(self) -> None:
        """A backward pass has gone through the total loss."""
        self._now.passes += 1
        if self._now.passes > 1 and self._plan.measure and not self._accumulate:
            raise RuntimeError(
                f"a second backward pass has gone through the total loss of {type(self).__name__} before step(): where a "
                f"step is made of several micro-batches, {type(self).__name__}(..., accumulate=True) and step() after the "
                "last of them; where a closure is evaluated several times, balancer.zero_grad() in it"
            )

    def _noted_step(self, skip: bool) -> None:
        note, source = self._probe.numbers, self._source if self._plan.measure else None
        number = self._processes.number
        if note is None and number == 1:
            raise RuntimeError(
                "balancer.step() comes after backward() on the balancer's total loss, taken in training mode; found no "
                "backward pass, or one for other gradients alone (inputs=...)"
            )
        if source is not None and note is not None and not skip:
            check_arrivals(self._method, source)
            if self._now.passes == 1:
                self._first.finish(note, source, self.tasks)
        if source is not None and number > 1 and not (source.keep_gradients or source.at_features):
            self._keep_gradients(source)
        note = torch.zeros_like(self._probe.leaf) if note is None else note.detach() if note.requires_grad else note
        measured: tuple[Tensor, ...] = () if source is None else (source.measured(),)
        if number > 1:
            self._processes.agree(self.tasks)
            note, *rest = self._processes.mean(note, *measured)
            measured = tuple(rest)
        norms = source.norms(measured[0], number) if source is not None else None
        if source is not None:
            source.clear()
        everyone = number == 1 and bool(self._now.everyone)
        self._log |= advance(self._method, Note(*note.unbind()), norms, skip, everyone)

    def _keep_gradients(self, source: GradientSource) -> None:
        """The processes have met since the last step."""
        if source.passes:
            raise RuntimeError(
                f"torch.distributed was initialised after this step of {type(self).__name__} was planned, and "
                "compiled code has "
                "measured norms, which do not add up over processes: make the balancer, or call to(device) on it, after that"
            )
        source.plan(True, gradients=False, processes=self._processes)

    def _weights_for(self, given: Losses, *, alone: bool = False) -> Tensor:
        """The weights for these losses; ``alone`` without asking the other processes."""
        if not (self.weighs and self._plan.move):
            return self.weights
        losses, here = given.values.detach().to(self.weights.dtype), self._mask(given.present)[0]
        everyone = given.present is None
        if not alone and self._processes.number > 1:
            losses, here = self._processes.mean_where(losses, here)
            everyone = False
        weights = self._method.weigh(
            step_of(self._method, losses, self.weights, None, None if everyone else here), self.state
        )
        return weights if everyone else torch.where(here, weights, self.weights)

    def _mask(self, present: tuple[bool, ...] | None) -> tuple[Tensor, Tensor]:
        """Which tasks are present, as bool and as number; made once for each case, as making it synchronises."""
        present = present or (True,) * len(self.tasks)
        if present not in self._masks:
            mask = torch.tensor(present, device=self.weights.device)
            self._masks[present] = mask, self._ones if all(present) else mask.to(self.weights.dtype)
        return self._masks[present]

    def _plan_next_step(self) -> None:
        """Decide what the next step does."""
        looks = self._steps & (self._steps - 1) == 0  # a look, which waits for the device, is rare
        if looks and not self._settled and not self.initial_seen.is_meta:
            self._settled = bool((self.initial_seen >= self._initial_steps).all())
        measure = self._every is not None and self._steps % self._every == 0
        move = not self._frozen and self._steps >= self._start and (measure or not self.needs_norms)
        plan = Plan(measure or not self.needs_norms or not self._settled, measure, move)
        if plan != self._plan:  # a module's attributes are not set for nothing
            self._plan = plan
        if self._source is not None and self._every is not None and self._source.owner is self._token:
            self._source.plan(measure, gradients=self._accumulate, processes=self._processes)
            self._first.again = measure and not self._source.taps and self._first.due(self._steps // self._every)
            self._source.auditing = self._first.again or (measure and self._first.pending(self.tasks))
            self._source.forget_aliases()

    def _checked_weights(self, given: Any, source: GradientSource | None) -> list[float] | str | None:
        if given is None:
            return None
        if isinstance(given, str):
            one_of("initial_weights", given, ("balanced",))
            if source is None or self._every is None:
                raise ValueError("initial_weights='balanced' needs gradients: a fork, and every=1 or more; found none")
            return given
        return numbers_by_task("initial_weights", given, self.tasks)
