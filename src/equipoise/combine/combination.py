"""The task gradients combined at the fork on their way back, where they are otherwise summed.

What multiplies the total loss (a loss scale, one over the number of micro-batches) is not known at the fork. It is the
gradient that arrives at the total loss, earlier in the same backward pass: it is read there, taken out of the task gradients
before they are combined, and put back into the result, so that no method ever sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from equipoise.engine._exchange import Meeting
from equipoise.engine._node import ForkNode, Gradients
from equipoise.engine._passages import Statistic, absent, added_up


@dataclass(frozen=True)
class Arrived:
    """What has arrived at the fork in one backward pass: the gradients of losses that nothing has multiplied.

    Over several processes they are this process's share in the gradients of the mean loss: what is summed over the samples of
    all processes is the whole batch's.

    Attributes:
        gradients: At each of the features, ``(T, *)``; zeros for a task of which none has arrived here. Empty where no task
            has.
        features: The features themselves, for a method that asks for them.
        at_layer: The gradients at W, ``(T, P)``, for a method that asks for them.
        present: Which tasks' gradients have arrived here.
    """

    gradients: Sequence[Tensor]
    features: Sequence[Tensor]
    at_layer: Tensor | None
    present: Sequence[bool]

    def of(self, rows: Sequence[int]) -> Arrived:
        """The same of some of the tasks only."""
        if len(rows) == len(self.present):
            return self
        at_layer = None if self.at_layer is None else self.at_layer[rows]
        return Arrived([g[rows] for g in self.gradients], self.features, at_layer, [self.present[i] for i in rows])


Combine = Callable[[Arrived], tuple[Sequence[Tensor], Tensor]]
"""``what has arrived -> (what goes on into the trunk at each of the features, a record of every task (T, columns))``."""


class Combination:
    """How the task gradients are combined, and the record of it that the backward passes leave.

    Only what ``backward()`` sends through a total loss that is watched (see `watch`) is combined. Whatever else is
    differentiated through the fork, a single loss for a log, has its plain gradient.

    Args:
        combine: The method. Over several processes each of them calls it, equally often, also where no task is present.
        probe: A leaf of zeros ``(T, columns)``: the record leaves the graph as its gradient, times what multiplies the total
            loss, and accumulates there.
        features: Whether the method asks for the features.
        width: P, the number of parameters in W, for a method that asks for the gradients there; otherwise 0.
    """

    def __init__(self, combine: Combine, probe: Tensor, *, features: bool = False, width: int = 0) -> None:
        self._combine, self._probe, self._features, self._width = combine, probe, features, width
        self.meeting = Meeting()
        self._scale: Tensor | None = None
        self._done = False
        self.at_layer = width > 0
        self.fan_out = torch.compiler.disable(self._fan_out)
        """One alias of each of the features for every task. What compiles the network goes around it."""

    def watch(self, total: Tensor, *, idle: bool) -> Tensor:
        """The total loss, such that a backward pass from it is combined at the fork.

        Args:
            total: The total loss.
            idle: No task is present here, so that nothing will arrive at the fork, while other processes may wait.
        """
        self._scale = None  # of a backward pass that has failed
        return _Watch.apply(total, self._probe, self, idle)  # type: ignore[no-any-return]

    def taken(self) -> Tensor:
        """The record of the backward passes since the last time.

        Raises:
            RuntimeError: There was none.
        """
        record = self._probe.grad
        if record is None:
            raise RuntimeError(
                "no task gradients were combined since the last step: call backward() on the balancer's total loss, computed "
                "from a forward pass through the fork in training mode, before balancer.step()"
            )
        self._probe.grad = None
        return record

    def reset(self) -> None:
        """Forget the record."""
        self._probe.grad = None

    def begin(self, scale: Tensor) -> None:
        """A backward pass has begun, from the total loss times ``scale``."""
        self._scale, self._done = scale, False
        torch.autograd.Variable._execution_engine.queue_callback(self._end)

    def idle(self, scale: Tensor) -> Tensor:
        """Take part where nothing arrives; return the gradient of the probe."""
        rows = self._probe.shape[0]
        at_layer = self._probe.new_zeros(rows, self._width) if self.at_layer else None
        _, record = self._combine(Arrived([], [], at_layer, [False] * rows))
        return self._scaled(record, scale)

    def _fan_out(
        self, mark: tuple[int, int], statistic: Statistic | None, kept: list[Tensor], features: list[Tensor]
    ) -> Sequence[Tensor]:
        passage = partial(self._passage, measure=statistic)
        kept = [*kept, *features] if self._features else kept
        return ForkNode.apply(passage, mark, self._probe.shape[0], len(kept), self._probe, *kept, *features)  # type: ignore[no-any-return]

    def _passage(
        self, kept: Sequence[Tensor], tasks: Sequence[Gradients], row: Tensor, *, measure: Statistic | None
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        if self._scale is None:
            return None, added_up(tasks)
        if self._done:
            raise RuntimeError(
                "all task gradients must arrive at the fork together, to be combined there; found that the fork was called "
                "more than once for one total loss: call it once, on all inputs, and backward() on one total loss at a time"
            )
        if torch.is_grad_enabled():
            raise RuntimeError(
                "task gradients that are combined at the fork cannot be differentiated again; found create_graph=True"
            )
        self._done = True
        arriving = [any(g is not None for g in of_one_feature) for of_one_feature in zip(*tasks, strict=True)]
        if not any(arriving):
            return None, [None] * len(arriving)
        scale = self._scale * self.meeting.number
        split = len(kept) - len(arriving) if self._features else len(kept)
        combined, record = self._combine(
            Arrived(
                [_rows([task[j] for task in tasks], row, scale) for j, here in enumerate(arriving) if here],
                [kept[split + j] for j, here in enumerate(arriving) if here and self._features],
                _at_layer(measure, kept[:split], tasks, self._width, row, scale) if measure is not None else None,
                [not absent(task) for task in tasks],
            )
        )
        results = iter(combined)
        trunk = [_sent(task_gradients, results, scale) for task_gradients in zip(*tasks, strict=True)]
        return self._scaled(record, self._scale), trunk

    def _scaled(self, record: Tensor, scale: Tensor) -> Tensor:
        return (record * scale).to(self._probe)

    def _end(self) -> None:
        self._scale = None


class _Watch(torch.autograd.Function):
    """An identity that tells a combination when a backward pass begins, and what multiplies the total loss in it."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, probe: Tensor, combination: Combination, idle: bool) -> Tensor:
        ctx.combination, ctx.idle = combination, idle
        return total.view_as(total)

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Any, ...]:
        ctx.combination.begin(scale.detach())
        return scale, ctx.combination.idle(scale.detach()) if ctx.idle else None, None, None


def _rows(gradients: Sequence[Tensor | None], row: Tensor, scale: Tensor) -> Tensor:
    """The gradients at one of the features as the rows of one tensor, free of the scale, in at least the probe's precision."""
    like = next(g for g in gradients if g is not None)
    dtype = torch.promote_types(like.dtype, row.dtype)
    rows = torch.stack([torch.zeros_like(like, dtype=dtype) if g is None else g.to(dtype) for g in gradients])
    return rows / scale.to(rows)


def _at_layer(
    statistic: Statistic, kept: Sequence[Tensor], tasks: Sequence[Gradients], width: int, row: Tensor, scale: Tensor
) -> Tensor:
    zeros = row.new_zeros(width)
    rows = [zeros if absent(task) else statistic(kept, task).reshape(-1) for task in tasks]
    return torch.stack([r.to(torch.promote_types(r.dtype, row.dtype)) for r in rows]) / scale.to(row)


def _sent(gradients: Sequence[Tensor | None], results: Any, scale: Tensor) -> Tensor | None:
    """The next of the results, scaled again, in the precision of the gradients; None where none has arrived."""
    like = next((g for g in gradients if g is not None), None)
    if like is None:
        return None
    result: Tensor = next(results)
    return (result * scale.to(result)).to(like.dtype).reshape(like.shape)
