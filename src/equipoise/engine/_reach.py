"""Does every loss reach the last shared layer, and only through its own alias?

The question is answered from the graph alone, by walking from the loss towards the leaves: nothing is computed, nothing
is retained. It is asked when a task is seen for the first time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


def check_reach(losses: dict[str, Tensor], tasks: Sequence[str], fork_id: int, layer: nn.Module | None) -> None:
    """Walk the graph of every loss.

    Args:
        losses: The losses to check, by task name.
        tasks: All tasks of the fork, in the order of its aliases.
        fork_id: Identity of the fork, as its nodes carry it.
        layer: The last shared layer, or None where the features are measured.

    Raises:
        ValueError: A loss does not reach its alias, reaches another task's, or reaches the last shared layer past the
            fork. The message names the task.
    """
    shared = {id(p): name for name, p in layer.named_parameters()} if layer is not None else {}
    for task, loss in losses.items():
        found = _walk(loss, fork_id, shared)
        if found is None:
            continue
        aliases, bypassed = found
        own = tasks.index(task)
        wrong = [tasks[i] for i in sorted(aliases - {own})]
        if wrong:
            raise ValueError(
                f"task {task!r}: its loss must depend on features[{task!r}] alone; found that it reads "
                f"{', '.join(f'features[{name!r}]' for name in wrong)}: a head reads the wrong alias"
            )
        if bypassed:
            raise ValueError(
                f"task {task!r}: its loss must reach the last shared layer through features[{task!r}] alone; found "
                f"that it also reaches its parameter {bypassed!r} past the fork"
            )
        if own not in aliases:
            raise ValueError(
                f"task {task!r}: its loss must depend on features[{task!r}]; found that it does not reach the fork"
            )


def _walk(loss: Tensor, fork_id: int, shared: dict[int, str]) -> tuple[set[int], str | None] | None:
    """The aliases of the fork that ``loss`` reads, and a shared parameter that it reaches past them.

    None where a compiled region hides the graph and the answer cannot be known from here.
    """
    aliases: set[int] = set()
    bypassed: str | None = None
    stack: list[tuple[Any, int]] = [(loss.grad_fn, 0)]
    seen: set[Any] = set()
    while stack:
        node, output = stack.pop()
        if node is None:
            continue
        if getattr(node, "fork_id", None) == fork_id:
            aliases.add(output)
            continue
        if node in seen:
            continue
        seen.add(node)
        if node.name().startswith("CompiledFunction"):
            return None
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) in shared:
            bypassed = shared[id(variable)]
        stack.extend(node.next_functions)
    return aliases, bypassed
