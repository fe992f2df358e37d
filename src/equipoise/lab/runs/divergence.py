"""When a run has diverged, and by which task's loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from equipoise.lab.record import Divergence

PATIENCE = 50
"""A run stops once this many consecutive steps were unsound."""


def unsound_since(since: Divergence | None, sound: Tensor, start: int, tasks: Sequence[str]) -> Divergence | None:
    """The first of those steps on end whose losses were not all finite, if the last step is one of them.

    Args:
        since: That before these steps.
        sound: Whether each loss was finite in each step ``(steps, T)``.
        start: The number of the first of these steps.
        tasks: The names of the tasks.
    """
    for step, each in enumerate(sound.tolist(), start):
        if all(each):
            since = None
        elif since is None:
            names = [repr(task) for task, fine in zip(tasks, each, strict=True) if not fine]
            since = Divergence(step, f"the loss of {', '.join(names)} was not finite")
    return since


class Watch:
    """Looks for steps whose loss is not finite, or that the balancer leaves out.

    It looks at the losses of `PATIENCE` steps at a time, so that a device need not be waited for at every step.

    Args:
        tasks: The names of the tasks.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        self._tasks = list(tasks)
        self._recent: list[Tensor] = []
        self._seen = self._skipped = 0
        self._since: Divergence | None = None

    def see(self, losses: Mapping[str, Tensor | None]) -> None:
        """Take note of the losses of a step."""
        given = [loss for loss in losses.values() if loss is not None]
        zero = given[0].detach().new_zeros(()) if given else torch.zeros(())
        self._recent.append(torch.stack([zero if loss is None else loss.detach() for loss in losses.values()]))

    @property
    def is_due(self) -> bool:
        """Whether there are enough steps to look at."""
        return len(self._recent) == PATIENCE

    def judge(self, skipped_steps: int, *, last: bool = False) -> Divergence | None:
        """Whether the run has diverged.

        Args:
            skipped_steps: All steps that the balancer has left out until now.
            last: Whether the run ends here: then it has diverged if its last step was unsound.
        """
        if not self._recent:
            return self._since if last else None
        start, count = self._seen, len(self._recent)
        self._since = unsound_since(self._since, torch.stack(self._recent).isfinite(), start, self._tasks)
        if self._since is None and skipped_steps - self._skipped == count == PATIENCE:
            cause = "the balancer left out every step, as a gradient norm was not finite"
            return Divergence(start, cause)
        self._recent, self._seen, self._skipped = [], start + count, skipped_steps
        if self._since is not None and (last or self._seen - self._since.step >= PATIENCE):
            return self._since
        return None

    def state_dict(self) -> dict[str, Any]:
        """Everything that it has seen."""
        since = None if self._since is None else (self._since.step, self._since.cause)
        return {"recent": self._recent, "seen": self._seen, "skipped": self._skipped, "since": since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._recent, self._seen, self._skipped = state["recent"], state["seen"], state["skipped"]
        self._since = None if state["since"] is None else Divergence(*state["since"])
