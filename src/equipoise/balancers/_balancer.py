"""What every balancer is: losses in, one scalar out, and a step that moves the weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from equipoise.balancers._given import (
    check_count,
    check_vector,
    is_empty,
    losses_by_task,
    marked_empty,
    positive_by_task,
    shares_by_task,
    stacked,
)
from equipoise.balancers._initial_losses import initial_losses_after, training_rates
from equipoise.balancers._noted import contributed, new_probe, noted_total, read
from equipoise.balancers._present import is_free_to_read, shown
from equipoise.engine import Processes, Source, task_names

Log = Mapping[str, Tensor | Callable[[], Tensor]]
"""What a log shows, by name; what has to be computed for nothing else is computed when the log is read."""


@dataclass(frozen=True)
class Step:
    """What a method gets to know of one step: everything that engine and methods share.

    Attributes:
        losses: The unweighted losses ``(T,)``; over several micro-batches, those of the whole batch.
        weights: What they were weighted with ``(T,)``.
        present: Which tasks took part ``(T,)``, bool. The entries of the others mean nothing. Where a step measures a subset
            of the tasks, one that was never measured has not taken part.
        initial_losses: ``L_i(0)``, this step included ``(T,)``; NaN for a task not yet seen.
        training_rates: The relative inverse training rates ``r_i`` ``(T,)``.
        task_norms: ``norm(g_i)``, the norms of the gradients of the unweighted losses ``(T,)``; None where this step was
            not measured.
        task_gradients: The gradients of the unweighted losses at W, ``(T, P)`` with P the numbers in W; None where this step
            was not measured, and for a method that does not ask for them (`Balancer._wants_gradients`).
    """

    losses: Tensor
    weights: Tensor
    present: Tensor
    initial_losses: Tensor
    training_rates: Tensor
    task_norms: Tensor | None
    task_gradients: Tensor | None = None


class Balancer(nn.Module, ABC):
    """Weights for T losses, and the rule that moves them.

    Where ``torch.distributed`` is initialised, every process (of `process_group`) must take part in every step: losses and
    gradients are averaged over the processes before anything is made of them, so that all hold identical weights. `step` is
    where they wait for each other; everything else a process may do alone. An error, such as a bad first loss, is raised by the
    process that has it; the others wait for it until it ends, as in every exchange between processes.

    ``balancer(losses)`` returns the weighted sum, on which the caller calls ``backward()`` once; ``balancer.step()`` then
    moves the weights. In ``eval()``, its own or the model's at the fork, and without gradients it returns the weighted sum and
    notices nothing. All state is in ``state_dict``. The weights are buffers: no optimiser ever holds them.

    Args:
        tasks: The fork (or what `attach` or `PerLoss` give) whose tasks are balanced, or their names for a method that needs
            no gradients.
        every: Gradient norms are measured at each ``every``-th step; ``None``: never. Needs more than names. A
            method that moves its weights at those steps only looks at nothing in between, once every task has its
            ``L_i(0)``: there the balancer is a weighted sum and no more.
        initial_losses: ``L_i(0)`` by task name; ``None``: measured.
        initial_steps: Where it is measured, the number of a task's first losses of which ``L_i(0)`` is the mean.
        start: The number of steps before the method begins to move the weights. ``L_i(0)`` is recorded from the first step
            on all the same.

    Raises:
        TypeError: ``tasks`` is neither a fork nor a sequence of strings.
        ValueError: A task's name occurs twice; ``every`` is not a positive integer, or is given without a fork; an initial
            loss is not positive and finite, ``initial_steps`` not a positive integer, or ``start`` not an integer of at
            least 0.
    """

    weights: Tensor
    initial_losses: Tensor
    initial_seen: Tensor
    skipped_steps: Tensor
    mean_weights: Tensor
    mean_count: Tensor
    held_norms: Tensor
    _source: Source | None
    _wants_gradients: ClassVar[bool] = False
    """Whether the method needs the task gradients at W, and not their norms only, which cost less."""
    _needs_every_loss: bool = True
    """Whether the method makes something of the losses of a step in which no gradient is measured."""

    def __init__(
        self,
        tasks: Source | Sequence[str],
        *,
        every: int | None = None,
        initial_losses: Mapping[str, float] | None = None,
        initial_steps: int = 1,
        start: int = 0,
    ) -> None:
        super().__init__()
        source = tasks if isinstance(tasks, Source) else None
        self.tasks = source.tasks if source is not None else task_names(tasks)  # type: ignore[arg-type]
        if every is not None:
            check_count("every", every)
            if source is None:
                raise ValueError("every: gradient norms are measured at a fork; found task names only")
        check_count("initial_steps", initial_steps)
        if not isinstance(start, int) or isinstance(start, bool) or start < 0:
            raise ValueError(f"start must be an integer of at least 0; found {start!r}")
        object.__setattr__(self, "_source", source)  # not a submodule: the fork's parameters are the network's
        self._processes = Processes()
        self._every = every
        self._steps = 0
        self._start, self._frozen = start, False
        self._unseen = set(self.tasks)
        self._unnoted = 0  # steps since the last one in which anything was looked at
        self._settled = False  # whether every task is known to have its L_i(0)
        self._unchecked = set(self.tasks)  # belongs to the graph, which a program that starts again builds anew
        self._log: dict[str, Tensor | Callable[[], Tensor]] = {}
        self._masks: dict[tuple[bool, ...], Tensor] = {}
        self._everyone = (True,) * len(self.tasks)

        measured = list(source.parameters_measured.values()) if source is not None else []
        dtype = (
            torch.promote_types(measured[0].dtype, torch.float32).to_real() if measured else torch.get_default_dtype()
        )
        device = measured[0].device if measured else None
        self.register_buffer("weights", torch.ones(len(self.tasks), dtype=dtype, device=device))
        self.register_buffer("skipped_steps", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("mean_weights", torch.zeros_like(self.weights))
        self.register_buffer("mean_count", torch.zeros_like(self.weights, dtype=torch.int64))
        self._initial_steps = initial_steps
        self._initial_given = initial_losses is not None
        unseen = torch.full_like(self.weights, float("nan"))
        if initial_losses is not None:
            unseen = self.weights.new_tensor(positive_by_task("initial_losses", initial_losses, self.tasks))
        self.register_buffer("initial_losses", unseen)
        seen = initial_steps if self._initial_given else 0
        self.register_buffer("initial_seen", torch.full_like(self.weights, seen, dtype=torch.int64))
        if source is not None and source.subset is not None:
            self.register_buffer("held_norms", torch.full_like(self.weights, float("nan")))
        self._probe = new_probe(self.weights)
        self._moves, self._notes = True, True
        self._switch()

    @property
    def process_group(self) -> Any:
        """The processes that share out every batch; None, as long as nothing else is set: all.

        To be set where some processes train another model; and, for gradients taken at the features, where some hold parts of
        one model and see the same batch (on a mesh: its data-parallel group). It stays out of ``state_dict``.
        """
        return self._processes.group

    @process_group.setter
    def process_group(self, group: Any) -> None:
        self._processes = Processes(group)
        self._switch()

    def forward(
        self, losses: Mapping[str, Tensor | None] | Tensor, shares: Mapping[str, float] | None = None
    ) -> Tensor:
        """The total loss, ``sum_i w_i L_i``; with ``shares``, ``sum_i share_i w_i L_i``.

        Args:
            losses: The unweighted loss of every task by name, each a scalar. ``None`` says that this batch has no labels
                for the task: it keeps its weight and its state. So it does where the loss is the total of another balancer
                that had no loss at all. Where hundreds of tasks all have labels, a tensor ``(T,)`` in task order saves
                taking it apart.
            shares: Where a loss is the mean over labelled samples, of which the micro-batches and processes of a step hold
                different numbers: by task name, the number here over the mean number of all of them. The step then sees the
                losses and gradients of one batch with all samples. 0, or nothing, for a task without loss. ``None``: alike.

        Returns:
            A scalar. Call ``backward()`` on it, or on a multiple of it (a loss scale, one over the number of
            micro-batches), and `step` once all backward passes of the step are done.

        Raises:
            TypeError: A loss is not a tensor.
            ValueError: A task is unknown or missing, a loss is not a scalar or lies on another device than the weights, the
                share of a task with a loss is not positive and finite; or, where a task is seen for the first time, its loss
                is not finite or does not reach the fork as it must.
        """
        if isinstance(losses, Tensor):
            check_vector(losses, self.tasks, self.weights.device)
            given: Mapping[str, Tensor | None] | Tensor = losses
            values = losses.to(torch.promote_types(losses.dtype, self.weights.dtype))
            here = self._everyone
        else:
            losses = losses_by_task(losses, self.tasks, self.weights.device)
            given = {task: None if is_empty(loss) else loss for task, loss in losses.items()}
            values = stacked(losses, self.weights)
            here = tuple(loss is not None for loss in given.values())
        idle = not any(here)  # a process without labels takes part all the same
        share = None if shares is None else shares_by_task(shares, self._by_task(given), values)
        if not ((values.requires_grad or idle) and torch.is_grad_enabled() and self._in_training()):
            with torch.no_grad():  # a method that asks the other processes does not here: this one may be alone
                weights = self._weights_for(values.detach(), self._mask(here))
            total = (weights * contributed(values, share)).sum()
        elif not (self._notes or idle):
            total = torch.dot(self.weights.to(values.dtype), contributed(values, share))
        else:
            self._check_values(given, values.detach())
            if self._source is not None and self._source.taps:
                values = self._tapped(losses, given)
            present = self._mask(here)
            weights = self._weights_for(values.detach(), present)
            total = noted_total(values, weights, present, share, self._mask(self._everyone), self._probe)
        return marked_empty(total) if idle else total

    def step(self, *, skip: bool = False) -> None:
        """Move the weights, from what the backward passes since the last step have left.

        A step in which a loss or a norm is not finite changes nothing and is counted in ``skipped_steps``. One without any
        loss, on whatever process, changes nothing either.

        Args:
            skip: Have this step change nothing and counted as well. For a loss scaler that has found an overflow where no
                balancer looks, in a head: ``balancer.step(skip=scaler.get_scale() < scale)``, with ``scale`` what
                ``get_scale()`` gave before ``scaler.update()``.

        Raises:
            RuntimeError: No backward pass has gone through the total loss since the last step. Not where nothing was to be
                looked at.
        """
        if self._notes:
            self._noted_step(skip)
        else:
            self._log.pop("weights", None)  # they are those of the buffer, then as now
            if skip:
                self.skipped_steps += 1
            else:
                self._unnoted += self._moves
        self._probe.grad = None
        self._finish()

    @torch.no_grad()
    def _noted_step(self, skip: bool) -> None:
        note = self._probe.grad
        if note is None:
            raise RuntimeError(
                "balancer.step() comes after backward() on the balancer's total loss, taken in training mode; found no "
                "backward pass"
            )
        step, initial = self._read(self._processes.mean(note))
        state, log = self._move(step) if self._moves else ({}, {})
        usable = torch.zeros_like(self.skipped_steps, dtype=torch.bool) if skip else self._usable(step)
        state |= initial
        if state:
            moving = usable & step.present.any()
            buffers, values = [getattr(self, name) for name in state], [*state.values()]
            if not (is_free_to_read(moving) and moving):
                values = [torch.where(moving, *pair) for pair in zip(values, buffers, strict=True)]
            torch._foreach_copy_(buffers, values)
        self.skipped_steps += ~usable
        self._log |= log
        self._unnoted = 0

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the backward passes since the last step, as an optimiser's ``zero_grad`` does.

        A step that is thrown away needs it, and a closure that is evaluated several times before one step.
        """
        self._probe.grad = None
        if self._source is not None:
            self._source.reset()

    def freeze(self) -> None:
        """Hold the weights and the state of the method where they are, until `unfreeze`.

        Losses, and gradient norms at each ``every``-th step, go on into the log, and a task that is seen for the first time
        has its ``L_i(0)`` recorded.
        """
        self._frozen = True
        self._switch()

    def unfreeze(self) -> None:
        """Let the method go on where `freeze` stopped it."""
        self._frozen = False
        self._switch()

    def averaged(self) -> dict[str, float]:
        r"""The weights averaged over training, to train again with constant ones: ``Static(tasks, balancer.averaged())``.

        Returns:
            By task name, :math:`\mathrm{mean}_t w_i(t)` of the weights that the task's losses were weighted with: over the
            steps in which it was present and the method was neither frozen nor yet to start, those left out that were not
            finite. The weight as it is, where there was no such step. Reading them synchronises.

        References:
            Chen et al. 2018, GradNorm, Table 1: "GradNorm Static".
        """
        weights = torch.where(self.mean_count > 0, self.mean_weights, self.weights)
        return dict(zip(self.tasks, weights.tolist(), strict=True))

    def log(self) -> dict[str, Tensor]:
        """What the last step saw and did, as tensors on the device of the weights, not synchronised until they are read.

        Returns:
            ``losses``, ``weights`` (those the losses were weighted with), ``training_rates``, ``gradient_norms`` (of the
            weighted losses) where they were measured, and what else the method reports, each ``(T,)`` in task order; NaN
            for a task that was absent. ``skipped_steps`` is a scalar. Quantities that
            were not measured in the last step are those of the last step that measured them; before the first step only
            ``weights`` and ``skipped_steps`` are there. So are the losses of a step that nothing was made of; see ``every``.
        """
        seen = {name: value() if callable(value) else value for name, value in self._log.items()}
        return {"weights": self.weights.clone(), **seen, "skipped_steps": self.skipped_steps.clone()}

    def get_extra_state(self) -> dict[str, Any]:
        """The state that is not a tensor: task names, step count, tasks seen, whether it is frozen."""
        return {
            "tasks": list(self.tasks),
            "steps": self._steps,
            "unseen": sorted(self._unseen),
            "settled": self._settled,
            "unnoted": self._unnoted,
            "frozen": self._frozen,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore it."""
        self._steps = state["steps"]
        self._unseen = set(state["unseen"])
        self._settled = state["settled"]
        self._unnoted = state["unnoted"]
        self._frozen = state["frozen"]
        self._switch()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """Refuse, before anything is changed, a state that belongs to other tasks."""
        saved = state_dict.get(f"{prefix}_extra_state")
        if saved is not None and tuple(saved["tasks"]) != self.tasks:
            raise ValueError(
                f"the saved balancer has the tasks {tuple(saved['tasks'])}; wanted {self.tasks}, in this order"
            )
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        """Name the tasks."""
        return f"tasks={self.tasks}"

    @abstractmethod
    def _update(self, step: Step) -> tuple[dict[str, Tensor], Log]:
        """The method: new values of buffers by name, and what the log shall say. Must not write to any buffer."""

    def _weigh(self, losses: Tensor, present: Tensor) -> Tensor:
        """The weights for these losses ``(T,)``: for most methods those that the last step left.

        A method whose weights depend on the losses at hand (1 / L_i, say) computes them here and writes them to the buffer
        in `_update`, from ``step.weights``. Must not write to any buffer.
        """
        return self.weights

    def _compared(self, losses: Tensor, initial_losses: Tensor) -> tuple[Tensor, Tensor]:
        """The losses ``(T,)`` and what they are divided by for the training rates: for most methods, what is given."""
        return losses, initial_losses

    def _usable(self, step: Step) -> Tensor:
        """Whether everything that the step is built on is finite, as a bool tensor ``()``."""
        return (torch.isfinite(torch.stack(self._must_be_finite(step))) | ~step.present).all()

    def _must_be_finite(self, step: Step) -> list[Tensor]:
        """What the step is built on, each ``(T,)``."""
        return [step.losses] if step.task_norms is None else [step.losses, step.task_norms]

    def _check_first(self, task: str, loss: float) -> None:
        """Refuse, by name, a loss that this method cannot start from."""

    def _tapped(
        self, losses: Mapping[str, Tensor | None] | Tensor, given: Mapping[str, Tensor | None] | Tensor
    ) -> Tensor:
        """The losses ``(T,)`` as a source that measures there has them."""
        assert self._source is not None
        tapped = self._source.tap(self._by_task(given))
        each = dict(self._by_task(losses)) | {task: loss for task, loss in tapped.items() if loss is not None}
        return stacked(each, self.weights)

    def _by_task(self, losses: Mapping[str, Tensor | None] | Tensor) -> Mapping[str, Tensor | None]:
        return dict(zip(self.tasks, losses.unbind(), strict=True)) if isinstance(losses, Tensor) else losses

    def _check_values(self, losses: Mapping[str, Tensor | None] | Tensor, values: Tensor) -> None:
        """Look at what is new: a task's first loss, and whether it reaches the fork."""
        if torch.compiler.is_compiling():
            return
        to_reach = self._unchecked if self._source is not None and self._source.fanning_out else set()
        if not (self._unseen or to_reach):
            return
        here = {task: loss for task, loss in self._by_task(losses).items() if loss is not None}
        for task in here.keys() & self._unseen:
            value = here[task].item()
            if not isfinite(value):
                raise ValueError(f"task {task!r}: its first loss must be finite; found {value}")
            self._check_first(task, value)
        if self._source is not None and (new := here.keys() & to_reach):
            self._source.check_reach({task: here[task] for task in self.tasks if task in new})
            self._unchecked -= new
        self._unseen -= here.keys()

    def _in_training(self) -> bool:
        """Whether anything is to be learnt from this pass: not in ``eval()``, the balancer's or the model's."""
        return self.training and (self._source is None or self._source.training)

    def _read(self, note: Tensor) -> tuple[Step, dict[str, Tensor]]:
        """The step's statistic, free of whatever the total loss was multiplied with; and what becomes of ``L_i(0)``."""
        losses, present, scaled_weights, scale = read(note)
        initial, kept = self.initial_losses, {}
        if not self._settled:
            initial = initial_losses_after(initial, self.initial_seen, losses, present, self._initial_steps)
            seen = self.initial_seen + (present & (self.initial_seen < self._initial_steps))
            kept = {"initial_losses": initial, "initial_seen": seen}
        rates = training_rates(*self._compared(losses, initial), present)
        weights = scaled_weights / scale
        self._log |= {
            "losses": partial(shown, losses, present),
            "weights": weights,
            "training_rates": partial(shown, rates, present),
        }
        norms, gradients = None, None
        if self._source is not None and self._source.measuring:
            self._source.reduce(self._processes)
            if self._source.measured or present.any():  # read on the host only where nothing was measured
                norms = self._source.gradient_norms().to(losses.dtype) / scaled_weights
                if self._source.subset is not None:
                    fresh = self._source.passes() > 0
                    norms = torch.where(fresh, norms, self.held_norms)
                    present = present & (fresh | ~self.held_norms.isnan())
                if self._wants_gradients:
                    gradients = self._source.task_gradients().flatten(1).to(losses.dtype) / scaled_weights[:, None]
            self._source.reset()
            weighted = losses if norms is None else weights * norms
            self._log["gradient_norms"] = partial(shown, weighted, present)
        return Step(losses, weights, present, initial, rates, norms, gradients), kept

    def _move(self, step: Step) -> tuple[dict[str, Tensor], Log]:
        """`_update`, and the mean of the weights so far."""
        state, log = self._update(step)
        alike = step.present * (1 + self._unnoted)  # the steps with these weights, this one included
        count = self.mean_count + alike
        share = (alike / count.clamp(min=1)).to(self.mean_weights.dtype)
        mean = {"mean_weights": self.mean_weights.lerp(step.weights.to(share.dtype), share), "mean_count": count}
        if step.task_norms is not None and self._source is not None and self._source.subset is not None:
            mean["held_norms"] = step.task_norms
        return state | mean, log

    def _finish(self) -> None:
        """Count the step; get ready for the next."""
        self._steps += 1
        if not self._settled and self._steps & (self._steps - 1) == 0:  # a look, which waits for the device, is rare
            self._settled = bool((self.initial_seen >= self._initial_steps).all())
        self._switch()

    def _switch(self) -> None:
        """What is looked at in the next step, and whether the method moves."""
        measured = self._every is not None and self._steps % self._every == 0
        moves = not self._frozen and self._steps >= self._start
        notes = measured or self._needs_every_loss or self._every is None or not self._settled
        if (moves, notes) != (self._moves, self._notes):  # a module's attributes are not set for nothing
            self._moves, self._notes = moves, notes
        if self._source is not None and (measured or self._source.fanning_out):
            turn = self._steps // self._every if self._every is not None else None
            gradients = self._wants_gradients or self._processes.number > 1
            self._source.measure(measured, gradients=gradients, turn=turn)

    def _weights_for(self, losses: Tensor, present: Tensor) -> Tensor:
        return self._weigh(losses, present) if self._moves else self.weights

    def _mask(self, present: tuple[bool, ...]) -> Tensor:
        """Which tasks are present, on the device of the weights; made once, as making it synchronises."""
        mask = self._masks.get(present)
        if mask is None or mask.device != self.weights.device:
            mask = self._masks[present] = torch.tensor(present, device=self.weights.device)
        return mask

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Balancer:
        """Follow the weights to another device or precision."""
        super()._apply(fn, recurse)
        self._probe = new_probe(self.weights)
        return self
