"""Methods that divide by the losses or take their logarithms."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping

import torch
from torch import Tensor

from equipoise.balancers._balancer import Balancer, Step


class PositiveLossBalancer(Balancer, ABC):
    """A method that has no meaning where a loss is zero or negative.

    On the CPU such a loss is refused. On an accelerator that would need a synchronisation in every step: there it is refused
    where it is a task's first, and later the step is skipped and counted.

    Raises:
        ValueError: A loss is not positive; the message names the task.
    """

    def _usable(self, step: Step) -> Tensor:
        return super()._usable(step) & ((step.losses > 0) | ~step.present).all()

    def _check_first(self, task: str, loss: float) -> None:
        if not loss > 0:
            raise ValueError(f"task {task!r}: {type(self).__name__} needs positive losses; found {loss}")

    def _check_values(self, losses: Mapping[str, Tensor | None] | Tensor, values: Tensor) -> None:
        super()._check_values(losses, values)
        if values.device.type != "cpu" or torch.compiler.is_compiling():
            return
        for (task, loss), value in zip(self._by_task(losses).items(), values.tolist(), strict=True):
            if loss is not None and value <= 0:
                raise ValueError(f"task {task!r}: {type(self).__name__} needs positive losses; found {value}")
