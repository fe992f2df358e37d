"""The network of a problem: trunk, last shared layer, a layer for each group if there are any, one head per task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from equipoise.engine import Fork, PerLoss
from equipoise.lab.groups import Groups, tasks_by_group


class ForkTree(nn.Module):
    """The forks of a nested balancer.

    Args:
        before: The layers between the fork above and the layer of this one.
        fork: Where the network splits into groups, and into the tasks that are in none.
        groups: The trees below it, by the name of the group.

    Attributes:
        fork: The fork.
        groups: The trees below it.

    Shape:
        ``forward(inputs)`` takes the inputs of ``before`` and returns the features of every task by its name.
    """

    def __init__(self, before: nn.Module, fork: Fork, groups: Mapping[str, ForkTree]) -> None:
        super().__init__()
        self.before, self.fork = before, fork
        self.below = nn.ModuleList(groups.values())  # by number: a name may hold a dot
        self.groups = dict(groups)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """Compute the features of every task."""
        features: dict[str, Tensor] = self.fork(self.before(inputs))
        for name, below in self.groups.items():
            features |= below(features.pop(name))
        return features


class Network(nn.Module):
    """A trunk, a last shared layer, a branch for each group if there are any, and one head per task.

    Args:
        trunk: The shared layers below the last shared layer.
        shared_layer: The last shared layer, W.
        heads: The layers of each task by its name; they read the output of ``shared_layer``, or of the task's branch.
        groups: The tasks of each group, or the groups that it is made of.
        branches: The layers of each group by its path, such as ``"stress/hoop"``.

    Attributes:
        source: Where gradient norms are taken: a balancer is built with it.
        branches_of: For each task that is in a group, the numbers of its branches from the root on.

    Shape:
        ``forward(inputs)`` takes a batch ``(B, *)`` of the problem's inputs and returns each head's output by task name.
    """

    source: Fork | PerLoss | ForkTree

    def __init__(
        self,
        trunk: nn.Module,
        shared_layer: nn.Module,
        heads: Mapping[str, nn.Module],
        groups: Groups | None = None,
        branches: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.fork = self.source = Fork(shared_layer, list(heads))
        self.heads = nn.ModuleList(heads.values())  # by number: a task's name may hold a dot
        self.tasks = list(heads)
        self.groups = groups or {}
        self.branches = nn.ModuleList((branches or {}).values())
        self._branch = {path: i for i, path in enumerate(branches or {})}
        self.branches_of = {
            task: [self._branch[path] for path in paths] for task, paths in _paths(self.groups, self.tasks).items()
        }

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """Compute the outputs of every task."""
        shared = self.trunk(inputs)
        if isinstance(self.source, ForkTree):
            features = self.source(shared)
        else:
            features = self.fork(shared)
            for task, branches in self.branches_of.items():
                for branch in branches:
                    features[task] = self.branches[branch](features[task])
        return {task: head(features[task]) for task, head in zip(self.tasks, self.heads, strict=True)}

    def nest(self) -> ForkTree:
        """Split from now on into groups, and within each group into its tasks, for a balancer at each of these forks.

        The network computes the same. The fork of a group is at the last module of its branch.

        Returns:
            The forks; `source` is these, too.

        Raises:
            ValueError: The network has no groups with branches of their own.
        """
        if not getattr(self, "groups", None):
            raise ValueError("wanted a problem with groups whose network has a branch for each; see Problem.branch")
        tree = self._tree(nn.Identity(), self.fork.shared_layer, self.groups, self.tasks, "")
        self.fork, self.source = tree.fork, tree
        return tree

    def _tree(
        self, before: nn.Module, layer: nn.Module | None, groups: Groups, tasks: Sequence[str], prefix: str
    ) -> ForkTree:
        group_of: dict[str, str] = {}
        below: dict[str, ForkTree] = {}
        for name, group in groups.items():
            leaves = tasks_by_group({name: group}, tasks)[name]
            group_of |= dict.fromkeys(leaves, name)
            branch = self.branches[self._branch[prefix + name]]
            parts = (branch[:-1], branch[-1]) if isinstance(branch, nn.Sequential) else (nn.Identity(), branch)
            inner = group if isinstance(group, Mapping) else {}
            below[name] = self._tree(*parts, inner, leaves, f"{prefix}{name}/")
        names = list(dict.fromkeys(group_of.get(task, task) for task in tasks))
        return ForkTree(before, Fork(layer, names), below)


def _paths(groups: Groups, tasks: Sequence[str]) -> dict[str, list[str]]:
    """The groups of every task that is in one, from the root on, by path."""
    found: dict[str, list[str]] = {}
    for path, some in tasks_by_group(groups, tasks).items():
        for task in some:
            found.setdefault(task, []).append(path)
    return found
