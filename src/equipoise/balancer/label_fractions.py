"""The fractions of labelled samples, where micro-batches and processes hold different numbers of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from equipoise.arguments import known_tasks, number
from equipoise.balancer.losses import Losses


def label_fractions(fractions: Any, losses: Losses, tasks: Sequence[str]) -> Tensor:
    """The label fractions ``(T,)``; 0 for an absent task.

    Raises:
        TypeError: They are not given by name, or one is not a number.
        ValueError: A task is unknown, one with a loss has no fraction that is positive and finite, or one without has another
            fraction than 0.
    """
    known_tasks("label_fractions", fractions, tasks)
    present = losses.present or (True,) * len(tasks)
    found = []
    for task, here in zip(tasks, present, strict=True):
        value = number(f"label_fractions: task {task!r}: its value", fractions.get(task, 0.0), "[0, inf)")
        if here != (value > 0):
            wanted = "a loss, so its fraction must be positive" if here else "no loss, so its fraction must be 0"
            raise ValueError(f"label_fractions: task {task!r} has {wanted}; found {value}")
        found.append(value)
    values = losses.values
    return torch.tensor(found, dtype=values.dtype).to(values.device, non_blocking=True)  # the host does not wait
