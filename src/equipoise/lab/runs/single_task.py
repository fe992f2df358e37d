"""One task trained alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from torch import Tensor

from equipoise.balancer import Balancer, Tasks
from equipoise.methods.static import unchanged


@final
class SingleTask(Balancer):
    """One task alone: the losses of the others take no part in training, and their heads stay as they are.

    When to use:
        As the baseline that ``delta_m`` is taken against: the same network, the same data and the same steps for every
        task by itself.

    Args:
        task: The task that is trained.
        tasks, every, accumulate: See `Balancer`.

    Raises:
        ValueError: There is no such task.
    """

    update = unchanged

    def __init__(self, tasks: Tasks, task: str, *, every: int | None = None, accumulate: bool = False) -> None:
        super().__init__(tasks, every=every, accumulate=accumulate)
        if task not in self.tasks:
            raise ValueError(f"task: wanted one of {', '.join(self.tasks)}; found {task!r}")
        self._task = task
        self.reset_parameters()

    def forward(
        self, losses: Mapping[str, Tensor | None] | Tensor, label_fractions: Mapping[str, float] | None = None
    ) -> Tensor:
        """The loss of the one task, as if the batch had no labels for the others."""
        by_task = losses if isinstance(losses, Mapping) else dict(zip(self.tasks, losses.unbind(), strict=True))
        alone = {task: loss if task == self._task else None for task, loss in by_task.items()}
        return super().forward(alone, label_fractions)
