"""Does every loss reach the last shared layer, and only through its own alias?

The question is answered from the graph alone, by walking from the loss towards the leaves: nothing is computed, nothing
is retained. It is asked when a task is seen for the first time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class Walk:
    """What was met on the way from a loss to the leaves.

    Attributes:
        aliases: The numbers of the tasks whose aliases are read.
        past: A measured parameter that is reached past the fork.
        forks: The nodes of the fork that were met.
        hidden: A compiled region hides a part of the graph, so that the answer cannot be known from here.
    """

    aliases: set[int] = field(default_factory=set)
    past: str | None = None
    forks: list[Any] = field(default_factory=list)
    hidden: bool = False


def check_reach(
    losses: Mapping[str, Tensor], tasks: Sequence[str], fork_id: int, parameters: Mapping[str, Tensor], by_rule: bool
) -> None:
    """Walk the graph of every loss.

    Args:
        losses: The losses to check, by task name.
        tasks: All tasks of the fork, in the order of its aliases.
        fork_id: Identity of the fork, as its nodes carry it.
        parameters: W, by name.
        by_rule: The layer's weight is measured from its inputs, which is all there is only if it is used nowhere below.

    Raises:
        ValueError: A loss does not reach its alias, reaches another task's, or reaches W past the fork; or W is used a
            second time below the fork. The message names the task.
    """
    for task, loss in losses.items():
        found = walk([(loss.grad_fn, 0)], fork_id, parameters)
        if found.hidden:
            continue
        wrong = [tasks[i] for i in sorted(found.aliases - {tasks.index(task)})]
        if wrong:
            raise ValueError(
                f"task {task!r}: its loss must depend on features[{task!r}] alone; found that it reads "
                f"{', '.join(f'features[{name!r}]' for name in wrong)}: a head reads the wrong alias"
            )
        if found.past is not None:
            raise ValueError(
                f"task {task!r}: its loss must reach the last shared layer through features[{task!r}] alone; found "
                f"that it also reaches its parameter {found.past!r} past the fork. PerLoss measures such a loss"
            )
        if not found.aliases:
            raise ValueError(
                f"task {task!r}: its loss must depend on features[{task!r}]; found that it does not reach the fork"
            )
        for node in found.forks if by_rule else []:
            below = walk(_edges_of_inputs(node), fork_id, parameters)
            if below.past is not None:
                raise ValueError(
                    f"task {task!r}: the last shared layer's {below.past!r} is used a second time below the fork; name it, "
                    f"parameters=({below.past!r},), so that it is measured from the graph and not from the layer's inputs"
                )


def walk(edges: Iterable[tuple[Any, int]], fork_id: int, parameters: Mapping[str, Tensor]) -> Walk:
    """Follow every edge down to the leaves, or to the fork."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    found, stack, seen = Walk(), list(edges), set()
    while stack:
        node, output = stack.pop()
        if node is None:
            continue
        mark = getattr(node, "mark", None)
        if mark is not None and mark[0] == fork_id:
            found.aliases.add(mark[1] + output // node.features)
            if node not in found.forks:
                found.forks.append(node)
            continue
        if node in seen:
            continue
        seen.add(node)
        if node.name().startswith("CompiledFunction"):
            found.hidden = True
        name = names.get(id(getattr(node, "variable", None)))
        found.past = found.past or name
        stack.extend(node.next_functions)
    return found


def _edges_of_inputs(node: Any) -> Iterator[tuple[Any, int]]:
    """The edges of a fork node to what it keeps: the inputs of the layer."""
    tensors = node.next_functions[-(node.kept + node.features) :]
    yield from tensors[: node.kept]
