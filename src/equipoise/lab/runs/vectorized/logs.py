"""The log of all runs, and which of them have diverged."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from equipoise.lab.problem import Task
from equipoise.lab.record import Curves, Divergence, Series
from equipoise.lab.runs.divergence import PATIENCE, unsound_since
from equipoise.lab.runs.logs import short


class StackedLogs:
    """The balancers' log at some steps.

    Args:
        tasks: The tasks.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = [task.name for task in tasks]
        self._steps: list[int] = []
        self._found: dict[str, list[Tensor]] = defaultdict(list)

    def take(self, step: int, quantities: Mapping[str, Tensor]) -> None:
        """Keep the quantities of a step, each ``(K, T)``, under the names that they have in `Curves`."""
        self._steps.append(step)
        for name, values in quantities.items():
            self._found[name].append(values.clone())

    def curves(self, run: int, until: int) -> Curves:
        """The log of a run before the step ``until``; empty for a quantity that was never known."""
        kept = [entry for entry, step in enumerate(self._steps) if step < until]
        curves: dict[str, Series] = {}
        for name, values in self._found.items():
            table = torch.stack([values[entry][run] for entry in kept]).T.tolist()
            curves[name] = {}
            if not all(math.isnan(value) for column in table for value in column):
                curves[name] = {
                    task: tuple(map(short, column)) for task, column in zip(self._tasks, table, strict=True)
                }
        return Curves(step=tuple(self._steps[entry] for entry in kept), **curves)


class StackedWatch:
    """Looks for runs whose losses are not finite, `PATIENCE` steps at a time.

    Args:
        tasks: The tasks.
        number: How many runs there are, K.

    Attributes:
        ended: The step after which each run was found to have diverged, and where that began; None for one that goes on.
    """

    def __init__(self, tasks: Sequence[Task], number: int) -> None:
        self._tasks = [task.name for task in tasks]
        self._recent: list[Tensor] = []
        self._since: list[Divergence | None] = [None] * number
        self.ended: list[tuple[int, Divergence] | None] = [None] * number

    @property
    def is_due(self) -> bool:
        """Whether there are enough steps to look at."""
        return len(self._recent) == PATIENCE

    @property
    def running(self) -> list[int]:
        """The runs that go on."""
        return [i for i, ended in enumerate(self.ended) if ended is None]

    def see(self, losses: Tensor) -> None:
        """Take note of the losses of a step ``(K, T)``."""
        self._recent.append(losses)

    def judge(self, step: int, *, last: bool = False) -> list[int]:
        """The runs that have diverged since the last call.

        Args:
            step: The number of steps done.
            last: Whether the runs end here: then those have diverged whose last step was unsound.
        """
        if not self._recent:
            return []
        start, sound = step - len(self._recent), torch.stack(self._recent).isfinite()
        self._recent = []
        is_sound = sound.all(dim=2).all(dim=0).tolist()
        found = []
        for i in self.running:
            since = None if is_sound[i] else unsound_since(self._since[i], sound[:, i], start, self._tasks)
            self._since[i] = since
            if since is not None and (last or step - since.step >= PATIENCE):
                self.ended[i] = step, since
                found.append(i)
        return found
