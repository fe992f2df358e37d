"""A tree of tasks: balancers of groups under a balancer of the groups."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from equipoise.arguments import described, known_tasks, task_names
from equipoise.balancer import Balancer
from equipoise.balancer.controls import Handle, numbers


@final
class Hierarchy(nn.Module):
    r"""A balancer of balancers, to any depth: one object for a whole tree of tasks.

    .. math:: L = \sum_g w_g \sum_{i \in g} w_{g,i} L_{g,i}

    The loss of a group, as the balancer above it sees it, is the total of the group's own balancer. Every balancer measures
    at its own fork: that of the root where the network splits into groups, that of a group where the group's branch splits
    into its tasks. The layers between the two belong to the group. A task that is in no group stands beside the groups.

    Args:
        root: The balancer whose tasks are the groups, and the tasks that are in none.
        groups: The balancer of each group by the group's name; a `Hierarchy` for a group that is made of groups.

    Attributes:
        tasks: The leaves of the tree, depth first: the tasks that have a loss of their own.

    Raises:
        TypeError: ``root`` is not a balancer, or a group is neither a balancer nor a `Hierarchy`.
        ValueError: A group is no task of ``root``, or is named ``"root"``; or two leaves, or a leaf and a group,
            have one name.

    Shape:
        T leaves; ``weights`` and the log's ``losses`` and ``weights`` are ``(T,)``, in the order of ``tasks``.

    Log:
        ``losses`` and ``weights`` of the leaves, with the weights that the losses had in the total: products along the path.
        Then the log of every balancer under its path: ``"root/gradient_norms"``, ``"stress/weights"``. In that of a group,
        the weights of its tasks are those within the group.

    Differs from the paper:
        GradNorm has one fork. Here each rule runs as published, on the groups as on the tasks of each group. A group's loss
        is a weighted sum whose weights move, which also moves its training rate and its gradient; if the weights sum to
        their number, as GradNorm's do, only a little.

    Example:
        >>> from equipoise import Equal, Static
        >>> tree = Hierarchy(Equal(("energy", "forces")), {"forces": Static(("x", "y"), {"x": 3.0, "y": 1.0})})
        >>> tree.tasks
        ('energy', 'x', 'y')
        >>> tree.weights
        tensor([1.0000, 1.5000, 0.5000])
        >>> tree({"energy": torch.tensor(1.0), "x": torch.tensor(2.0), "y": None})
        tensor(4.)
    """

    tasks: tuple[str, ...]
    root: Balancer

    def __init__(self, root: Balancer, groups: Mapping[str, Balancer | Hierarchy]) -> None:
        super().__init__()
        if not isinstance(root, Balancer):
            raise TypeError(f"root must be a balancer; found {described(root)}")
        known_tasks("groups", groups, root.tasks)
        for name, group in groups.items():
            if not isinstance(group, Balancer | Hierarchy):
                raise TypeError(f"groups: {name!r} must be a balancer or a Hierarchy; found {described(group)}")
            if name == "root":
                raise ValueError(
                    "groups: 'root' is the name of the balancer above the groups in the log; found a group of this name"
                )
        self.root = root
        self._names = tuple(task for task in root.tasks if task in groups)
        self.branches = nn.ModuleList(groups[name] for name in self._names)  # by number: a name may hold a dot
        below = self.groups
        leaves = [below[task].tasks if task in below else (task,) for task in root.tasks]
        self.tasks = tuple(leaf for some in leaves for leaf in some)
        task_names([*self.tasks, *self._names])  # so that an error names one of them

    @property
    def groups(self) -> dict[str, Balancer | Hierarchy]:
        """The groups right below the root, by name."""
        return dict(zip(self._names, cast("list[Balancer | Hierarchy]", list(self.branches)), strict=True))

    @property
    def tree(self) -> dict[str, Any]:
        """The groups by name, as a problem of the lab takes them: the tasks of each, or the groups that it is made of.

        A task that stands beside the groups of a group is a group of its own there; one beside the groups of the root is in
        none.
        """
        return {
            name: {task: (task,) for task in group.root.tasks} | group.tree
            if isinstance(group, Hierarchy)
            else group.tasks
            for name, group in self.groups.items()
        }

    @property
    def balancers(self) -> dict[str, Balancer]:
        """Every balancer of the tree by its path: ``"root"``, ``"stress"``, ``"stress/root"`` where that is a tree itself."""
        found = {"root": self.root}
        for name, group in self.groups.items():
            if isinstance(group, Hierarchy):
                found |= {f"{name}/{path}": balancer for path, balancer in group.balancers.items()}
            else:
                found[name] = group
        return found

    @property
    def weights(self) -> Tensor:
        """The weights of the leaves in the total ``(T,)``: products along the path."""
        return self._products(self.root.weights, {name: group.weights for name, group in self.groups.items()})

    def forward(
        self, losses: Mapping[str, Tensor | None], label_fractions: Mapping[str, float] | None = None
    ) -> Tensor:
        """The total loss, a scalar to call ``backward()`` on as on that of any balancer.

        A group that has no loss at all is absent for the balancer above it, which then keeps the group's weight.

        Args:
            losses: The unweighted loss of every leaf by name, each a scalar; ``None`` for one without labels.
            label_fractions: By the name of a leaf, as a balancer takes them, for every leaf that has a label anywhere in the
                step: 0 where it has none here.

        Raises:
            TypeError: The losses are not given by name, or one is not a tensor.
            ValueError: A task is unknown or missing, or a balancer refuses it, by the name of the leaf or the group.
        """
        known_tasks("losses", losses, self.tasks)
        for leaf in self.tasks:
            if leaf not in losses:
                raise ValueError(f"task {leaf!r}: its loss is missing; hand in None if this batch has no labels for it")
        if label_fractions is not None:
            known_tasks("label_fractions", label_fractions, self.tasks)
        fractions = dict(label_fractions or {})
        below = {task: losses.get(task) for task in self.root.tasks}
        idle: list[Tensor] = []
        weights = dict(zip(self.root.tasks, self.root.weights.unbind(), strict=True))
        for name, group in self.groups.items():
            own = {leaf: fractions.pop(leaf) for leaf in group.tasks if leaf in fractions}
            given = {leaf: losses[leaf] for leaf in group.tasks}
            total = group(given, None if label_fractions is None else own)
            if all(loss is None for loss in given.values()):
                # 0, with the way to the group's balancer, which in other parts of the step may have labels
                idle.append(weights[name].to(total.dtype) * total)
                continue
            below[name] = total
            if own and (fraction := fmean(own.values())):
                # The total has the fractions in it. Divided by their mean, and with that for its own, it weighs as much as it
                # did; and as the fractions of a task have the mean 1 over the parts of a step, so has theirs.
                below[name], fractions[name] = total / fraction, fraction
        return sum(idle, self.root(below, None if label_fractions is None else fractions))

    def step(self, *, skip: bool = False) -> None:
        """Step every balancer of the tree, each from its own measurement; all processes must, as all do in one order.

        A loss or norm that is not finite leaves those balancers where they are that see it: its own, and those above.

        Args:
            skip: Have this step change nothing, and every balancer count it; see `Balancer.step`.

        Raises:
            RuntimeError: No backward pass has gone through the total loss since the last step.
        """
        for balancer in self.balancers.values():
            balancer.step(skip=skip)

    def step_after(self, optimizer: Any) -> Any:
        """Step after every step of ``optimizer``, so that the loop has no line for it; see `Balancer.step_after`."""
        return Handle([balancer.step_after(optimizer) for balancer in self.balancers.values()])

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the backward passes since the last step."""
        for balancer in self.balancers.values():
            balancer.zero_grad(set_to_none)

    def freeze(self) -> None:
        """Hold the weights of the whole tree until `unfreeze`; single balancers of it can be frozen by themselves."""
        for balancer in self.balancers.values():
            balancer.freeze()

    def unfreeze(self) -> None:
        """Let the methods go on where `freeze` stopped them."""
        for balancer in self.balancers.values():
            balancer.unfreeze()

    def averaged(self) -> dict[str, float]:
        """By leaf, the product along its path of the weights averaged over training; see `Balancer.averaged`."""
        below = {name: group.averaged() for name, group in self.groups.items()}
        means = self.root.averaged().items()
        return {leaf: mean * w for task, mean in means for leaf, w in below.get(task, {task: 1.0}).items()}

    def log(self) -> dict[str, Tensor]:
        """The record of the last step, as tensors that are not synchronised until they are read; see the class."""
        root, groups = self.root.log(), {name: group.log() for name, group in self.groups.items()}
        found = {"weights": self._products(root["weights"], {name: log["weights"] for name, log in groups.items()})}
        if "losses" in root:
            own = zip(self.root.tasks, root["losses"].split(1), strict=True)
            found["losses"] = torch.cat([groups[task]["losses"] if task in groups else loss for task, loss in own])
        for name, log in {"root": root, **groups}.items():
            found |= {f"{name}/{quantity}": value for quantity, value in log.items()}
        return found

    def scalars(self) -> dict[str, float]:
        """The log as numbers by name, for any logger: ``{"weight/energy": 1.2, "fuel/gradient_norm/heat": 0.3, ...}``.

        Those of the leaves first, then those of every balancer under its path; see `Balancer.scalars`.
        """
        found = numbers({name: value for name, value in self.log().items() if "/" not in name}, self.tasks)
        for name, below in {"root": self.root, **self.groups}.items():
            found |= {f"{name}/{scalar}": value for scalar, value in below.scalars().items()}
        return found

    def _products(self, root: Tensor, groups: Mapping[str, Tensor]) -> Tensor:
        own = zip(self.root.tasks, root.split(1), strict=True)
        return torch.cat([weight * groups[task] if task in groups else weight for task, weight in own])
