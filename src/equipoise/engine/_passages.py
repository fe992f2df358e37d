"""What happens at the fork on the way back: the gradients are added up for the trunk, and measured for the probe.

There are two forms of the measurement. Either the probe's row of a task is its gradient at W, which adds up over backward
passes and processes. Or it is the squared norm of that gradient alone, which needs no room and can often be had for less;
but only the gradients add up, so that form is exact where each row comes from one pass. Behind either lies a 1, so that
the row tells how many passes it is the sum of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from equipoise.engine._node import Gradients, Passage

Statistic = Callable[[Sequence[Tensor], Gradients], Tensor]
"""``(what was kept of the forward pass, gradients at the features) -> gradient at W`` of one task."""

Squares = Callable[[Sequence[Tensor], Sequence[Gradients]], list[Tensor]]
"""``(what was kept, gradients at the features task by task) -> squared norms of the gradients at W``."""

Numbers = Sequence[int | None]
"""The row of the probe that each alias is measured for; None for one that is not measured."""


def gradients_measured(measure: Statistic, numbers: Numbers, tasks: int) -> Passage:
    """The passage that gives the probe, a row for each of the ``tasks``, gradients at W; zeros where there is none."""
    return partial(_passed, measure=measure, numbers=numbers, tasks=tasks, rows=_measured_gradients)


def squares_measured(measure: Squares, numbers: Numbers, tasks: int) -> Passage:
    """The passage that gives the probe, a row for each of the ``tasks``, squared norms; zeros where there is none."""
    return partial(_passed, measure=measure, numbers=numbers, tasks=tasks, rows=_measured_squares)


def one_by_one(statistic: Statistic) -> Squares:
    """The squared norms of what ``statistic`` gives, which is thrown away at once."""
    return partial(_one_by_one, statistic=statistic)


def _passed(
    kept: Sequence[Tensor],
    aliases: Sequence[Gradients],
    row: Tensor,
    *,
    measure: Any,
    numbers: Numbers,
    tasks: int,
    rows: Callable[..., Tensor],
) -> tuple[Tensor | None, list[Tensor | None]]:
    trunk = added_up(aliases)
    arrived = {i: alias for i, alias in zip(numbers, aliases, strict=True) if i is not None and not absent(alias)}
    if not arrived:
        return None, trunk
    with torch.no_grad():
        return rows(measure, kept, arrived, tasks, row), trunk


def _measured_gradients(
    measure: Statistic, kept: Sequence[Tensor], arrived: Mapping[int, Gradients], tasks: int, row: Tensor
) -> Tensor:
    return gradient_rows(((i, measure(kept, gradients)) for i, gradients in arrived.items()), tasks, row)


def _measured_squares(
    measure: Squares, kept: Sequence[Tensor], arrived: Mapping[int, Gradients], tasks: int, row: Tensor
) -> Tensor:
    return square_rows(dict(zip(arrived, measure(kept, [*arrived.values()]), strict=True)), tasks, row)


def gradient_rows(gradients: Iterable[tuple[int, Tensor]], tasks: int, row: Tensor) -> Tensor:
    """The probe's rows from the gradients of some of the tasks, by number, which are asked for one after the other."""
    rows = row.new_zeros(tasks, len(row))
    for i, gradient in gradients:
        rows[i, :-1] = gradient.reshape(-1)
        rows[i, -1] = 1
    return rows


def square_rows(squares: Mapping[int, Tensor], tasks: int, row: Tensor) -> Tensor:
    """The probe's rows from the squared norms of some of the tasks, by number."""
    found = torch.stack([*squares.values()]).to(row.dtype).clamp(min=0)  # rounding may leave less than nothing
    rows = torch.stack([found, torch.ones_like(found)], 1)
    if len(squares) == tasks:
        return rows
    zeros, by_number = torch.zeros_like(row), dict(zip(squares, rows, strict=True))
    return torch.stack([by_number.get(i, zeros) for i in range(tasks)])


def _one_by_one(kept: Sequence[Tensor], tasks: Sequence[Gradients], *, statistic: Statistic) -> list[Tensor]:
    return [squared_norm(statistic(kept, task)) for task in tasks]


def squared_norm(gradient: Tensor) -> Tensor:
    """The squared norm, in a precision in which that of scaled half-precision gradients does not overflow."""
    norm: Tensor = torch.linalg.vector_norm(gradient, dtype=torch.promote_types(gradient.dtype, torch.float32))
    return norm.to(square_dtype(gradient.device)).square()


def square_dtype(device: torch.device) -> torch.dtype:
    """The precision of squared norms."""
    return torch.float32 if device.type == "mps" else torch.float64


def absent(task: Gradients) -> bool:
    """Whether no gradient of this task has arrived."""
    return all(gradient is None for gradient in task)


def added_up(tasks: Sequence[Gradients]) -> list[Tensor | None]:
    """The gradient at each of the features, summed over the tasks."""
    return [_sum(of_one_feature) for of_one_feature in zip(*tasks, strict=True)]


def _sum(gradients: Gradients) -> Tensor | None:
    arrived = [g for g in gradients if g is not None]
    if len(arrived) < 2:
        return arrived[0] if arrived else None
    total = arrived[0] + arrived[1]
    for gradient in arrived[2:]:
        # in place it takes no more room, but is not to be differentiated
        total = total + gradient if torch.is_grad_enabled() else total.add_(gradient)
    return total
