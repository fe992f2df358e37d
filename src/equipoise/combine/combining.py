"""Methods that combine the task gradients inside the fork."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from equipoise.balancers._balancer import Balancer, Step
from equipoise.balancers._given import is_idle
from equipoise.balancers._present import shown
from equipoise.engine import Arrived, Combination, Fork


class CombiningBalancer(Balancer, ABC):
    """The second kind of balancer: not weights on the losses, but another combination of their gradients at the fork.

    The weights of the losses are 1 and stay so: the total is the plain sum, and every head gets the gradient of its own plain
    loss. At the fork, in the same backward pass, the task gradients go on into the trunk not as their sum but as what the
    method makes of them. Whatever multiplies the total loss is taken out before and put back afterwards, so that the method
    sees the gradients of the losses as they are. Each micro-batch is combined by itself. A fork serves the balancer that was
    built, or stepped, last.

    Over several processes the method combines the whole batch's gradients. They exchange what they need in the backward pass,
    so each of them must run as many of those as the others; where one has no labels at all, it hands in ``None`` for every
    task and calls ``backward()`` all the same.

    Args:
        fork: Where the network splits into tasks: a `Fork`.
        columns: What the method records of every task, by the name in the log, the gradient norm first.
        at_layer: Whether the method asks for the gradients at W.
        features: Whether the method asks for the features.

    Raises:
        TypeError: ``fork`` is none.
    """

    _combination: Combination | None = None

    def __init__(
        self,
        fork: Fork,
        *,
        columns: tuple[str, ...] = ("gradient_norms",),
        at_layer: bool = False,
        features: bool = False,
    ) -> None:
        if not isinstance(fork, Fork):
            raise TypeError(
                f"{type(self).__name__} needs a Fork, where the gradients of all tasks arrive in one place; found "
                f"{type(fork).__name__}"
            )
        self._columns, self._at_layer, self._features = columns, at_layer, features
        super().__init__(fork)
        self._combination = self._new_combination()
        self._switch()

    def forward(
        self, losses: Mapping[str, Tensor | None] | Tensor, shares: Mapping[str, float] | None = None
    ) -> Tensor:
        """The total loss, the plain sum of ``losses``. See `Balancer.forward`."""
        if torch.compiler.is_compiling():
            raise RuntimeError(
                f"{type(self).__name__} combines gradients in the backward pass, which a compiled function does not have: "
                "compile the model, and call the balancer outside of what is compiled"
            )
        total = super().forward(losses, shares)
        if not (total.requires_grad and torch.is_grad_enabled() and self._in_training()):
            return total
        self._here.meeting.open(self._processes)
        return self._here.watch(total, idle=is_idle(losses))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the backward passes since the last step. See `Balancer.zero_grad`."""
        super().zero_grad(set_to_none)
        self._here.reset()

    @abstractmethod
    def _combine(self, arrived: Arrived, rows: list[int]) -> tuple[Sequence[Tensor], Tensor]:
        """The method. Must not write to any buffer.

        Args:
            arrived: What has arrived for the tasks that are present on any process.
            rows: Which tasks these are.

        Returns:
            What goes on into the trunk at each of the features, for the samples that are here; and what the log shall say of
            every task, ``(T, len(_columns))``, the gradient norm first: the same on every process.
        """

    def _update(self, step: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {}, {}

    def _read(self, note: Tensor) -> tuple[Step, dict[str, Tensor]]:
        """The step's statistic, with what the method recorded: the mean over the backward passes since the last step."""
        step, kept = super()._read(note)
        seen, *columns = self._here.taken().unbind(1)
        means = [torch.where(seen != 0, column / torch.where(seen != 0, seen, 1.0), 0.0) for column in columns]
        self._log |= {name: shown(mean, step.present) for name, mean in zip(self._columns, means, strict=True)}
        return replace(step, task_norms=means[0]), kept

    def _sum(self, values: Tensor) -> Tensor:
        """The sum over the processes, the same on each of them; sent in the precision of the weights, which all have."""
        if self._here.meeting.number == 1:
            return values
        return self._here.meeting.sum(values.to(self.weights.dtype)).to(values.dtype)

    @property
    def _here(self) -> Combination:
        assert self._combination is not None
        return self._combination

    def _combine_present(self, arrived: Arrived) -> tuple[Sequence[Tensor], Tensor]:
        """`_combine` for the tasks present, and the record of all: whether a task was seen, and the method's columns."""
        rows = [i for i, here in enumerate(self._anywhere(arrived.present)) if here]
        record = self.weights.new_zeros(len(self.tasks), 1 + len(self._columns))
        if not rows:
            return [], record
        combined, columns = self._combine(arrived.of(rows), rows)
        record[rows] = torch.cat([torch.ones_like(columns[:, :1]), columns], 1).to(record)
        return combined, record

    def _anywhere(self, present: Sequence[bool]) -> Sequence[bool]:
        """Which tasks are present on any process."""
        if self._here.meeting.number == 1:
            return present
        counts: list[float] = self._sum(self.weights.new_tensor(present)).tolist()
        return [count > 0 for count in counts]

    def _new_combination(self) -> Combination:
        columns = 1 + len(self._columns)
        probe = self.weights.new_zeros(len(self.tasks), columns).requires_grad_()
        measured = cast(Fork, self._source).parameters_measured if self._at_layer else {}
        width = sum(parameter.numel() for parameter in measured.values())
        return Combination(self._combine_present, probe, features=self._features, width=width)

    def _switch(self) -> None:
        super()._switch()
        if self._combination is not None:
            cast(Fork, self._source).combine(self._combination)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CombiningBalancer:
        """Follow the weights to another device or precision."""
        super()._apply(fn, recurse)
        self._combination = self._new_combination()
        self._switch()
        return self

    def __getstate__(self) -> dict[str, Any]:
        """What was recorded belongs to the step at hand, and does not travel."""
        return {**self.__dict__, "_combination": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the balancer, and have its fork combine."""
        super().__setstate__(state)
        self._combination = self._new_combination()
        self._switch()
