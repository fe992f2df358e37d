"""What happens at the fork on the way back: the gradients are added up for the trunk, and measured for the probe.

There are two forms of the measurement. Either the probe's row of a task is its gradient at W, which adds up over backward
passes and processes. Or it is the squared norm of that gradient alone, which needs no room and can often be had for less;
but only the gradients add up, so that form is exact where each row comes from one pass. Behind either lies a 1, so that
the row tells how many passes it is the sum of.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from equipoise.engine._node import Gradients, Passage

Statistic = Callable[[Sequence[Tensor], Gradients], Tensor]
"""``(what was kept of the forward pass, gradients at the features) -> gradient at W`` of one task."""

Squares = Callable[[Sequence[Tensor], Sequence[Gradients]], list[Tensor]]
"""``(what was kept, gradients at the features task by task) -> squared norms of the gradients at W``."""


def gradients_measured(measure: Statistic, chosen: Collection[int] | None = None) -> Passage:
    """The passage that gives the probe the gradient at W of every task; zeros where none arrives or it is not ``chosen``."""
    return partial(_passed, measure=measure, chosen=chosen, rows=_gradient_rows)


def squares_measured(measure: Squares, chosen: Collection[int] | None = None) -> Passage:
    """The passage that gives the probe the squared norm of every task; zeros where none arrives or it is not ``chosen``."""
    return partial(_passed, measure=measure, chosen=chosen, rows=_measured_squares)


def one_by_one(statistic: Statistic) -> Squares:
    """The squared norms of what ``statistic`` gives, which is thrown away at once."""
    return partial(_one_by_one, statistic=statistic)


def _passed(
    kept: Sequence[Tensor],
    tasks: Sequence[Gradients],
    row: Tensor,
    *,
    measure: Any,
    chosen: Collection[int] | None,
    rows: Callable[..., Tensor],
) -> tuple[Tensor | None, list[Tensor | None]]:
    trunk = added_up(tasks)
    numbers = [i for i, task in enumerate(tasks) if not absent(task) and (chosen is None or i in chosen)]
    if not numbers:
        return None, trunk
    with torch.no_grad():
        return rows(measure, kept, tasks, numbers, row), trunk


def _gradient_rows(
    measure: Statistic, kept: Sequence[Tensor], tasks: Sequence[Gradients], numbers: Sequence[int], row: Tensor
) -> Tensor:
    rows = row.new_zeros(len(tasks), len(row))
    for i in numbers:
        rows[i, :-1] = measure(kept, tasks[i]).reshape(-1)
        rows[i, -1] = 1
    return rows


def _measured_squares(
    measure: Squares, kept: Sequence[Tensor], tasks: Sequence[Gradients], numbers: Sequence[int], row: Tensor
) -> Tensor:
    return square_rows(dict(zip(numbers, measure(kept, [tasks[i] for i in numbers]), strict=True)), len(tasks), row)


def square_rows(squares: Mapping[int, Tensor], tasks: int, row: Tensor) -> Tensor:
    """The probe's rows from the squared norms of some of the tasks, by number."""
    found = torch.stack([*squares.values()]).to(row.dtype)
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
