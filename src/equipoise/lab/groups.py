"""A tree of tasks: which of them belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

Groups: TypeAlias = "Mapping[str, Sequence[str] | Groups]"
"""The tasks of every group by its name, or the groups that it is made of."""


def tasks_by_group(groups: Groups, tasks: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """All tasks of every group by its path, a group before those that it is made of.

    Args:
        groups: The tree. A task need not be in it.
        tasks: The names of all tasks.

    Raises:
        ValueError: A group is empty, or names no task; or a task is in two groups of which none holds the other.

    Example:
        >>> tasks_by_group({"stress": {"hoop": ("inner", "outer"), "end": ("axial",)}}, ("axial", "inner", "outer"))
        {'stress': ('inner', 'outer', 'axial'), 'stress/hoop': ('inner', 'outer'), 'stress/end': ('axial',)}
    """
    found, own = {}, [task for group in groups.values() for task in _leaves(group)]
    for name, group in groups.items():
        leaves = tuple(_leaves(group))
        if not leaves:
            raise ValueError(f"groups: {name!r} must have at least one task; found none")
        for task in leaves:
            if task not in tasks:
                raise ValueError(f"groups: {name!r} has the unknown task {task!r}; the tasks are {', '.join(tasks)}")
            if own.count(task) > 1:
                raise ValueError(f"groups: task {task!r} must be in one group; found it more than once, in {name!r}")
        found[name] = leaves
        if isinstance(group, Mapping):
            found |= {f"{name}/{path}": inner for path, inner in tasks_by_group(group, tasks).items()}
    return found


def _leaves(group: Sequence[str] | Groups) -> list[str]:
    if isinstance(group, Mapping):
        return [task for inner in group.values() for task in _leaves(inner)]
    return [group] if isinstance(group, str) else list(group)
