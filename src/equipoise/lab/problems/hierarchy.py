"""A tree of tasks whose relatedness falls with their distance in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

from equipoise.lab.groups import Groups
from equipoise.lab.problems.related import RelatedRegressions


@dataclass(frozen=True, kw_only=True)
class TaskTree(RelatedRegressions):
    """Regressions at the leaves of a tree: the nearer two of them are in the tree, the more they have in common.

    All levels, from the root to the leaves, have an equal share of the variance. So with depth 3 the correlation without noise
    is 3/4 for two tasks of one parent, 2/4 for two of one grandparent, and 1/4 for all others. A task is called by its way
    from the root, ``t010``, and the groups by the beginning of it, ``t0`` and ``t01``. See `RelatedRegressions` for the targets
    and the network.

    Attributes:
        depth: Levels below the root; the leaves are the last.
        branching: Children of every node above the leaves.
    """

    depth: int = 3
    branching: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth < 2:
            raise ValueError(f"depth: wanted at least 2, so that there are groups, found {self.depth}")
        if not 2 <= self.branching <= 9:
            raise ValueError(f"branching: wanted 2 to 9, found {self.branching}")

    @property
    def groups(self) -> Groups:
        """The groups of the root's children, each made of its own children."""
        return {f"t{i}": self._below(f"t{i}") for i in range(self.branching)}

    def shares(self) -> Mapping[str, Mapping[str, float]]:
        """A function for every node of the tree."""
        share = 1 / (self.depth + 1)
        ways = product(*[[str(i) for i in range(self.branching)]] * self.depth)
        leaves = ["t" + "".join(way) for way in ways]
        return {leaf: {leaf[: level + 1]: share for level in range(self.depth + 1)} for leaf in leaves}

    def scale_of(self, task: str) -> float:
        """From 1 to ``scale_ratio`` among the children of one parent."""
        return float(self.scale_ratio ** (int(task[-1]) / (self.branching - 1)))

    def _below(self, node: str) -> Groups | list[str]:
        children = [f"{node}{i}" for i in range(self.branching)]
        return children if len(node) == self.depth else {child: self._below(child) for child in children}
