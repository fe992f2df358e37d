"""A balancer for the groups of tasks and one for the tasks of each group, as a method of a comparison."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from equipoise.balancer import Balancer
from equipoise.hierarchy import Hierarchy
from equipoise.lab.networks.network import ForkTree

Builder: TypeAlias = Callable[[str, ForkTree], Balancer]
"""Builds the balancer of a method, as it is written, at the fork of a tree."""


def nested(tree: ForkTree, build_at: Builder, *, root: str = "gradnorm", groups: str = "gradnorm") -> Hierarchy:
    """`Hierarchy` over the groups of a problem.

    Args:
        tree: The forks, as `Network.nest` gives them.
        build_at: Builds a balancer at one of them.
        root: The method that balances the groups, as it is written on the command line, such as ``"gradnorm(alpha=0.5)"``.
        groups: The method that balances the tasks of each group, and the groups that a group is made of.
    """
    if not isinstance(tree, ForkTree):
        raise ValueError("it needs the forks of a network with groups, which Network.nest gives")
    below = {
        name: nested(group, build_at, root=groups, groups=groups) if group.groups else build_at(groups, group)
        for name, group in tree.groups.items()
    }
    return Hierarchy(build_at(root, tree), below)


def leaves(tree: ForkTree) -> list[str]:
    """The tasks of a tree."""
    below = [leaf for group in tree.groups.values() for leaf in leaves(group)]
    return [*(task for task in tree.fork.tasks if task not in tree.groups), *below]
