"""Groups of tasks: correlated within a group, and not between groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from equipoise.lab.groups import Groups
from equipoise.lab.problems.related import RelatedRegressions


@dataclass(frozen=True, kw_only=True)
class TaskGroups(RelatedRegressions):
    """Regressions in groups: those of a group are correlated, those of different groups less, or not at all.

    Task j of group g is called ``g0_t0``. See `RelatedRegressions` for the targets and the network.

    Attributes:
        num_groups: Number of groups.
        tasks_per_group: Tasks in each.
        within: Correlation of two tasks of a group, without noise.
        between: Correlation of tasks of different groups, without noise; at most ``within``.
    """

    num_groups: int = 3
    tasks_per_group: int = 3
    within: float = 0.8
    between: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_groups", "tasks_per_group"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: wanted at least 1, found {getattr(self, name)}")
        if not 0 <= self.between <= self.within <= 1:
            raise ValueError(
                f"between and within: wanted 0 <= between <= within <= 1, found between={self.between}, "
                f"within={self.within}"
            )

    @property
    def groups(self) -> Groups:
        """The tasks of each group."""
        return {f"g{g}": [f"g{g}_t{t}" for t in range(self.tasks_per_group)] for g in range(self.num_groups)}

    def shares(self) -> Mapping[str, Mapping[str, float]]:
        """A function for all tasks, one for each group, one for each task."""
        return {
            task: {"all": self.between, group: self.within - self.between, task: 1 - self.within}
            for group, tasks in self.groups.items()
            for task in tasks
        }

    def scale_of(self, task: str) -> float:
        """From 1 to ``scale_ratio`` in each group."""
        number = int(task.rpartition("_t")[2])
        return float(self.scale_ratio ** (number / max(1, self.tasks_per_group - 1)))
