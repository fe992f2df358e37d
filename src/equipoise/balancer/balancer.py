"""The driver of every method: losses in, one scalar out, and a step that moves the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from equipoise.arguments import count, described, flag, numbers_by_task, one_of, task_names
from equipoise.balancer.checks import check_values
from equipoise.balancer.controls import Controls
from equipoise.balancer.labels import fractions_of
from equipoise.balancer.losses import parse
from equipoise.balancer.total_loss import noted_total
from equipoise.engine import GradientSource
from equipoise.engine.modes import in_transform
from equipoise.engine.processes import Processes


class Balancer(Controls):
    """Weights for T losses, and the rule that moves them.

    ``balancer(losses)`` returns the weighted sum, on which the caller calls ``backward()`` once; ``balancer.step()`` then
    moves the weights. In ``eval()`` (its own, or the model's at the fork) and without gradients it returns the weighted sum but
    updates no state. All state is in ``state_dict``, as tensors of at least single precision. The weights are buffers: no
    optimiser ever holds them.

    In a task's first measured step the source's measurement is compared with one ``autograd.grad`` of the task's loss, and
    refused by name where the two differ by more than the cube root of the precision (0.5 % in float32, 20 % where bfloat16 is
    on the way); ``log()["audit"]`` has the largest deviation. From time to time, and in the step after a change of the
    graph, the features that its loss reads are audited again (7 % in float32), as another term may be added later. Hooks on
    the gradients of the network then run once more for each loss, so that ``.grad`` by ``retain_grad`` in a head is a sum.

    Where ``torch.distributed`` is initialised, every process (of `process_group`) must take part in every step: losses and
    gradients are averaged over the processes, by one collective in `step`, so that all hold identical weights. A process
    without labels passes ``None`` for its tasks and still steps.

    A method overrides at most three of its own: `init_state`, `update` and `weigh`; all are pure functions of their
    arguments. Its class attributes declare its needs. The last line of its ``__init__`` is ``self.reset_parameters()``.

    Args:
        tasks: The fork (or the result of `attach` or `PerLoss`) whose tasks are balanced, or their names for a method that
            needs no gradients.
        every: Gradient norms are measured at each ``every``-th step; ``None``: never. Needs more than names. In between, a
            method that moves its weights only at those steps is just a weighted sum, once every task has its ``L_i(0)``.
        start: The number of steps before the method begins to move the weights. ``L_i(0)`` is recorded from the first step on.
        accumulate: Whether a measured step is made of several backward passes (micro-batches), or calls the fork several
            times. Task gradients are kept then, which add up, and not their norms alone.
        initial_losses: ``L_i(0)`` by task name; ``None``: measured.
        initial_steps: If it is measured, the number of a task's first losses of which ``L_i(0)`` is the mean.
        initial_weights: The weights of the first step: by task name, scaled so that they sum to T; ``"balanced"``, in inverse
            proportion to the gradient norms of the first batch; ``None``: those of the method.

    Raises:
        TypeError: ``tasks`` is neither a fork nor a sequence of strings, or an argument is of another type.
        ValueError: A task's name occurs twice, or an argument is out of its range; the message names it.
    """

    def __init__(
        self,
        tasks: GradientSource | Sequence[str],
        *,
        every: int | None = None,
        start: int = 0,
        accumulate: bool = False,
        initial_losses: Mapping[str, float] | None = None,
        initial_steps: int = 1,
        initial_weights: Mapping[str, float] | str | None = None,
    ) -> None:
        super().__init__()
        source = tasks if isinstance(tasks, GradientSource) else None
        if self.needs_norms and source is None:
            raise TypeError(
                f"{type(self).__name__} needs a Fork, or the result of attach or PerLoss; found {described(tasks)}"
            )
        self.tasks: tuple[str, ...] = source.tasks if source is not None else task_names(tasks)
        if self.needs_norms and every is None:
            raise ValueError(f"every must be a positive integer for {type(self).__name__}; found None")
        if every is not None and source is None:
            raise ValueError("every: gradient norms are measured at a fork; found task names only")
        self._every = None if every is None else count("every", every)
        self._start = count("start", start, least=0)
        self._accumulate = flag("accumulate", accumulate)
        self._initial_steps = count("initial_steps", initial_steps)
        self._given_losses: list[float] | None = None
        if initial_losses is not None:
            self._given_losses = numbers_by_task("initial_losses", initial_losses, self.tasks)
        self._given_weights: list[float] | str | None = None
        if isinstance(initial_weights, str):
            self._given_weights = one_of("initial_weights", initial_weights, ("balanced",))
            if every is None:
                raise ValueError("initial_weights='balanced' needs gradients: a fork, and every=1 or more; found none")
        elif initial_weights is not None:
            self._given_weights = numbers_by_task("initial_weights", initial_weights, self.tasks)
        object.__setattr__(self, "_source", source)  # not a submodule: the fork's parameters are the network's
        self._token = object()
        self._processes = Processes()
        parameter = next(iter(source.shared_parameters.values()), None) if source is not None and every else None
        precision = torch.get_default_dtype() if parameter is None else parameter.dtype.to_real()
        self._make_state(torch.promote_types(precision, torch.float32), None if parameter is None else parameter.device)
        if source is not None and every is not None:
            source.owner = self._token

    def forward(
        self, losses: Mapping[str, Tensor | None] | Tensor, label_fractions: Mapping[str, float] | None = None
    ) -> Tensor:
        """The total loss, ``sum_i w_i L_i``; with label fractions f, ``sum_i f_i w_i L_i``.

        Args:
            losses: The unweighted loss of every task by name, each a scalar. ``None`` says that this batch has no labels for
                the task: it keeps its weight and its state. Where hundreds of tasks all have labels, a tensor ``(T,)`` in task
                order saves taking it apart.
            label_fractions: Where a loss is the mean over labelled samples, of which the micro-batches and processes of a step
                hold different numbers: by task name, the number here over the mean number of all of them. The step then sees
                the losses and gradients of one batch with all samples. 0, or nothing, for a task without loss.

        Returns:
            A scalar. Call ``backward()`` on it, or on a multiple of it (a loss scale, one over the number of micro-batches),
            and `step` once all backward passes of the step are done.

        Raises:
            TypeError: A loss is not a real floating-point tensor.
            ValueError: A task is unknown or missing, a loss is not a scalar, carries no gradient, lies on another device than
                the weights or is not finite at first, or a label fraction is out of its range.
            RuntimeError: Another balancer measures at the fork.
        """
        if self._hooked and self._now.passes:
            self._skip_missed_step()
        given = parse(losses, self.tasks, self.weights)
        values, source = given.values, self._source
        fractions = self._ones if given.present is None else self._mask(given.present)[1]
        if label_fractions is not None:
            fractions = fractions_of(label_fractions, given, self.tasks)
        nothing = given.present is not None and not any(given.present)
        learning = torch.is_grad_enabled() and self.training and (source is None or source.training)
        if in_transform() or not (learning and (nothing or values.requires_grad)):
            trains = self.training and torch.is_grad_enabled() and values.requires_grad and not in_transform()
            self._now.model_in_eval = trains
            with torch.no_grad():  # a method that asks the other processes does not here: this one may be alone
                weights = self._weights_for(given, alone=True)
            return torch.dot(weights.to(values.dtype), fractions.to(values.dtype) * values)
        if given.constant:
            raise ValueError(
                f"task {given.constant!r}: its loss must carry a gradient; found a constant. Hand in None where the batch has "
                "no labels for the task, and look for a detach() or a number made into a tensor otherwise"
            )
        if not (self._plan.note or nothing):
            self._now.weighed = True
            return torch.dot(self.weights.to(values.dtype), values if label_fractions is None else fractions * values)
        if not torch.compiler.is_compiling():
            self._open(given)
        check_values(self, given)
        if source is not None and source.taps and self._plan.measure:
            values = source.tap(given.each, values)
        weights = self._weights_for(given)
        return noted_total(values, weights, fractions, self._ones, self._probe.leaf)

    def step(self, *, skip: bool = False) -> None:
        """Move the weights, from the measurement of the backward passes since the last step.

        A step in which a loss, a norm or the new state is not finite changes nothing and is counted in
        ``skipped_steps``. A step in which no process has a loss changes nothing either.

        Args:
            skip: Whether this step changes nothing and is counted too. For a loss scaler that has found an overflow in a
                head, which no balancer sees: ``balancer.step(skip=scaler.get_scale() < scale)``, with ``scale`` the
                value of ``get_scale()`` before ``scaler.update()``.

        Raises:
            RuntimeError: No backward pass has gone through the total loss since the last step; or no gradient of a task has
                arrived at the fork, or those of backward passes other than the total loss's.
            ValueError: The audit of a task's first step failed; the message names the task and the likely cause.
        """
        skip, number = flag("skip", skip), self._processes.number
        if self._plan.measure and not self._first.again and number == 1:  # else the processes would audit apart
            self._first.compare_graphs(self._source)
        with torch.no_grad():
            if self._plan.note:
                self._noted_step(skip, number)
            elif skip:
                self.skipped_steps.add_(1)
            elif number == 1 and not (self._now.weighed or self._now.passes):
                raise RuntimeError(
                    "balancer.step(): no losses have been weighed since the last step; one step needs one call"
                )
        self._now.steps += 1
        self.zero_grad()
        self._plan_next_step()
        if self._kept is not None:
            self._kept.append(self.log())
