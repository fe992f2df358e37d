"""What GradNorm and its variants share: what they are told, what they refuse, and which tasks they move."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from math import isfinite

import torch
from torch import Tensor

from equipoise.balancers._balancer import Balancer, Log, Step
from equipoise.balancers._given import check_known, check_source, positive_by_task
from equipoise.balancers._gradnorm_stuck import Plateau, plateau_after, stuck_tasks
from equipoise.balancers._initial_losses import check_initial_loss
from equipoise.balancers._present import mean_over
from equipoise.engine import Source


class GradNormFamily(Balancer, ABC):
    r"""A rule that brings the norms :math:`w_i \lVert g_i \rVert` into the ratios of :math:`p_i r_i^\alpha`.

    Args:
        fork: Where the network splits into tasks: a `Fork`, or what `attach` or `PerLoss` give.
        alpha: How strongly slow tasks are favoured.
        every: Measured, and the weights moved, at each ``every``-th step.
        start: The number of steps before the weights begin to move.
        initial_losses: ``L_i(0)`` by task name; ``None``: measured.
        initial_steps: Where it is measured, the number of a task's first losses of which ``L_i(0)`` is the mean.
        priors: How important a task is, by name; scaled to a mean of 1. ``None``: all alike.
        patience: Take a task that is stuck, as `stuck_tasks` tells it, out of the update: its weight is the one that it had
            when its loss last fell, and the others share the rest. ``None``: do not look.

    Raises:
        TypeError: ``fork`` is none of these.
        ValueError: A setting is out of its range.
    """

    priors: Tensor
    observed_first: Tensor
    observed_last: Tensor

    def __init__(
        self,
        fork: Source,
        alpha: float,
        *,
        every: int,
        start: int,
        initial_losses: Mapping[str, float] | None,
        initial_steps: int,
        priors: Mapping[str, float] | None,
        patience: int | None,
    ) -> None:
        check_source(type(self).__name__, fork)
        self._needs_every_loss = patience is not None
        super().__init__(fork, every=every, initial_losses=initial_losses, initial_steps=initial_steps, start=start)
        if not (alpha >= 0 and isfinite(alpha)):
            raise ValueError(f"alpha must be at least 0 and finite; found {alpha}")
        if patience is not None and not (isinstance(patience, int) and patience >= 1):
            raise ValueError(f"patience must be a positive integer or None; found {patience!r}")
        self.alpha = alpha
        self._patience = patience
        ones = torch.ones_like(self.weights)
        given = ones if priors is None else ones.new_tensor(positive_by_task("priors", priors, self.tasks))
        self.register_buffer("priors", given / given.mean(), persistent=False)
        for name in ("observed_first", "observed_last"):
            self.register_buffer(name, torch.zeros_like(ones))
        if patience is not None:
            for name, value in Plateau.start(ones)._asdict().items():
                self.register_buffer(f"plateau_{name}", value)

    @torch.no_grad()
    def observe(self, losses: Mapping[str, float | Tensor | None]) -> None:
        r"""Take the training rates from these losses, say those of a validation set, until the next call.

        From then on :math:`\tilde L_i` is the last loss observed over the first one observed, in place of
        :math:`L_i(t) / L_i(0)`: a task that overfits is one that does not learn. The first call sets all ratios to 1, so
        call it before training for ratios that count from there. Where ``torch.distributed`` is initialised, every process
        must make the call, and the losses are averaged over those processes that hand one in.

        Args:
            losses: The loss of every task by name, a number or a scalar tensor. ``None``: not observed this time; a task
                never observed keeps its training loss.

        Raises:
            TypeError: The losses are not given by name, or one is not a number.
            ValueError: A task is unknown or missing; a loss is negative or not finite, or is the task's first and zero.
        """
        if not isinstance(losses, Mapping):
            raise TypeError(f"observe: losses must be a dict by task name; found {type(losses).__name__}")
        check_known("observe", losses, self.tasks)
        first = (self.observed_first == 0).tolist()
        values = [self._observed(task, losses, is_first) for task, is_first in zip(self.tasks, first, strict=True)]
        here = self.weights.new_tensor([[value or 0.0, value is not None] for value in values])
        total, share = self._processes.mean(here.T.contiguous())
        given = share > 0
        loss = total / torch.where(given, share, 1.0)
        self.observed_first.copy_(torch.where(given & (self.observed_first == 0), loss, self.observed_first))
        self.observed_last.copy_(torch.where(given, loss, self.observed_last))

    @abstractmethod
    def _rule(self, step: Step, task_norms: Tensor, active: Tensor, weights: Tensor) -> tuple[dict[str, Tensor], Log]:
        """`_update` for a step that was measured, from ``weights``; only those of the ``active`` tasks move."""

    def _update(self, step: Step) -> tuple[dict[str, Tensor], Log]:
        state: dict[str, Tensor] = {}
        log: Log = {}
        active, weights = step.present, self.weights
        if self._patience is not None:
            before = Plateau(*(self.get_buffer(f"plateau_{name}") for name in Plateau._fields))
            after = plateau_after(before, step, weights, self._patience)
            stuck = stuck_tasks(after, step, weights, self._patience)
            active, weights = step.present & ~stuck, torch.where(stuck, after.weight, weights)
            mean_rate = mean_over(step.training_rates, active)
            step = replace(step, training_rates=step.training_rates / mean_rate)
            state = {f"plateau_{name}": value for name, value in after._asdict().items()}
            log = {"stuck": stuck}
        if step.task_norms is None:
            return state, log
        moved, seen = self._rule(step, step.task_norms, active, weights)
        return state | moved, {**log, **seen}

    def _compared(self, losses: Tensor, initial_losses: Tensor) -> tuple[Tensor, Tensor]:
        observed = self.observed_first > 0
        return (
            torch.where(observed, self.observed_last, losses),
            torch.where(observed, self.observed_first, initial_losses),
        )

    def _must_be_finite(self, step: Step) -> list[Tensor]:
        needed = super()._must_be_finite(step)
        if self.alpha > 0:
            needed += [step.training_rates, step.losses.sqrt()]  # a negative loss has no root
        return needed

    def _check_first(self, task: str, loss: float) -> None:
        if self.alpha > 0 and not self._initial_given:
            check_initial_loss(task, loss)

    def _check_values(self, losses: Mapping[str, Tensor | None] | Tensor, values: Tensor) -> None:
        super()._check_values(losses, values)
        if self.alpha > 0 and values.device.type == "cpu" and not torch.compiler.is_compiling() and (values < 0).any():
            task = self.tasks[int(values.argmin())]
            raise ValueError(
                f"task {task!r}: a loss must not be negative with alpha > 0, since a ratio of losses then has no meaning; "
                f"found {values.min().item()}. alpha=0 needs no ratios"
            )

    def _observed(self, task: str, losses: Mapping[str, float | Tensor | None], is_first: bool) -> float | None:
        """One task's loss, checked."""
        if task not in losses:
            raise ValueError(f"observe: the loss of task {task!r} is missing; hand in None if there is none this time")
        loss = losses[task]
        if loss is None:
            return None
        if not isinstance(loss, (int, float, Tensor)) or (isinstance(loss, Tensor) and loss.dim() != 0):
            found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise TypeError(f"observe: task {task!r}: a loss must be a number, a scalar tensor or None; found {found}")
        value = float(loss)
        if not 0 <= value < float("inf"):
            raise ValueError(f"observe: task {task!r}: a loss must be finite and not negative; found {value}")
        if is_first and value == 0:
            raise ValueError(f"observe: task {task!r}: its first loss must be positive, since losses are divided by it")
        return value
