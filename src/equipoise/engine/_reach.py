"""Does every loss reach the last shared layer, and only through its own alias?

The question is answered from the graph alone, by walking from the loss towards the leaves: nothing is computed, nothing
is retained. It is asked when a task is seen for the first time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.autograd.graph import GradientEdge

from equipoise.engine._rules import is_sharded


@dataclass
class Walk:
    """What was met on the way from a loss to the leaves.

    Attributes:
        aliases: The numbers of the tasks whose aliases are read.
        reached: The measured parameters that are reached past the fork.
        forks: The nodes of the fork that were met.
        edges: All edges that were followed.
        hidden: The kinds of nodes met that hide a part of the graph: whatever it holds, it is one node.
        behind: The measured parameters that are met behind such a node, of which nobody knows what depends on what.
    """

    aliases: set[int] = field(default_factory=set)
    reached: set[str] = field(default_factory=set)
    forks: list[Any] = field(default_factory=list)
    edges: set[tuple[Any, int]] = field(default_factory=set)
    hidden: set[str] = field(default_factory=set)
    behind: set[str] = field(default_factory=set)


_COMPILED, _REENTRANT = "CompiledFunctionBackward", "CheckpointFunctionBackward"

_HIDING = {
    _COMPILED: "in a compiled region: compile what is below it and what is above it instead",
    _REENTRANT: "in a reentrant checkpoint: checkpoint with use_reentrant=False",
}
"""Kind of node -> where it hides what it holds, and what to do about it."""

_DDP, _FSDP = "_DDPSinkBackward", "RegisterPostBackwardFunctionBackward"

_PASSING = {_DDP, _FSDP}
"""Nodes of the wrappers for several processes, which all outputs or inputs of a module go through: each to its own number."""


def check_reach(
    losses: Mapping[str, Tensor],
    tasks: Sequence[str],
    fork_id: int,
    parameters: Mapping[str, Tensor],
    *,
    by_rule: bool,
    reads: str,
) -> None:
    """Walk the graph of every loss.

    Args:
        losses: The losses to check, by task name.
        tasks: All tasks of the fork, in the order of its aliases.
        fork_id: Identity of the fork, as its nodes carry it.
        parameters: W, by name.
        by_rule: The layer's weight is measured from its inputs, which is all there is only if it is used nowhere below.
        reads: What a head reads, with a place for the task's name.

    Raises:
        ValueError: A loss does not reach its alias, reaches another task's, or reaches W past the fork; W is used a second
            time below the fork, or not at all; or an alias lies below another one. The message names the task.
    """
    below: dict[Any, Walk] = {}
    for task, loss in losses.items():
        own = reads.format(repr(task))
        found = walk([(loss.grad_fn, 0)], fork_id, parameters)
        wrong = [reads.format(repr(tasks[i])) for i in sorted(found.aliases - {tasks.index(task)})]
        if wrong:
            raise ValueError(
                f"task {task!r}: its loss must depend on {own} alone; found that it reads {', '.join(wrong)}: "
                "every head must read its own"
            )
        if found.reached:
            raise ValueError(
                f"task {task!r}: its loss must reach the last shared layer through {own} alone; found that it also reaches "
                f"its parameter {min(found.reached)!r} past the fork. PerLoss measures such a loss"
            )
        if not parameters and any(edge in found.edges for node in found.forks for edge in _edges_below(node)):
            raise ValueError(
                f"task {task!r}: its loss must reach the features through {own} alone; found that it also reaches them past "
                "the fork. PerLoss measures such a loss, at the parameters of a layer"
            )
        if not (found.aliases or found.hidden):
            raise ValueError(
                f"task {task!r}: its loss must depend on {own}; found that it does not reach the fork (a checkpoint around "
                "which needs use_reentrant=False)"
            )
        for node in found.forks:
            if node not in below:
                below[node] = walk(_edges_below(node), fork_id, _measured_by(node, parameters))
            _check_below(task, own, below[node], [reads.format(repr(name)) for name in tasks], parameters, by_rule)


def _check_below(
    task: str, own: str, below: Walk, reads: Sequence[str], parameters: Mapping[str, Tensor], by_rule: bool
) -> None:
    if below.aliases:
        raise ValueError(
            f"task {task!r}: below {own} there must be no other alias, whose task would get this gradient as well; found "
            f"{reads[min(below.aliases)]}. PerLoss measures such a loss"
        )
    if by_rule:
        for name in below.reached | below.behind:
            raise ValueError(
                f"task {task!r}: the last shared layer's {name!r} is used a second time below the fork; name it, "
                f"parameters=({name!r},), so that it is measured from the graph and not from the layer's inputs"
            )
        return
    _check_wrapped(task, below, parameters)
    if parameters and not below.reached:
        raise ValueError(
            f"task {task!r}: {own} must depend on the last shared layer; found none of its parameters "
            f"{', '.join(map(repr, parameters))} below it"
        )


def check_followed(features: Sequence[Tensor], parameters: Mapping[str, Tensor]) -> None:
    """Check that autograd can go back from the features to W: that nothing between them hides what it holds.

    Raises:
        ValueError: A compiled region or a reentrant checkpoint does.
    """
    found = walk([(feature.grad_fn, 0) for feature in features], -1, parameters)
    lost = found.behind | (parameters.keys() - found.reached)
    if found.hidden and lost:
        raise _lost("the last shared layer must be measured", lost, found.hidden)


def check_depends(task: str, loss: Tensor, parameters: Mapping[str, Tensor]) -> None:
    """Check that a loss depends on W, and so that autograd can find the gradient.

    Raises:
        ValueError: It does not; the message names the task.
    """
    found = walk([(loss.grad_fn, 0)], -1, parameters)
    _check_wrapped(task, found, parameters)
    lost = found.behind | (parameters.keys() - found.reached)
    if _REENTRANT in found.hidden and lost:
        raise _lost(f"task {task!r}: its loss must depend on the parameters measured", lost, {_REENTRANT})
    if not found.reached | found.behind:
        raise ValueError(f"task {task!r}: its loss must depend on the parameters measured; found that it does not")


def _check_wrapped(task: str, found: Walk, parameters: Mapping[str, Tensor]) -> None:
    """Refuse what the wrappers for several processes do not leave in the graph, or would take for the backward pass."""
    for name, parameter in parameters.items():
        if is_sharded(parameter) and name not in found.reached:
            raise ValueError(
                f"task {task!r}: the last shared layer must be measured from the original graph; found that {name!r} is "
                "sharded again by fully_shard after the layer's forward pass. Use reshard_after_forward=False for this layer, "
                "or shard it with a module around it, as the Fork or the model"
            )
    if _is_static(found):
        raise ValueError(
            f"task {task!r}: its gradient would be measured by a pass through DistributedDataParallel, which with "
            "static_graph=True takes the end of the first such pass for that of backward() and averages too early: use "
            "static_graph=False, or a Fork inside the model"
        )


def check_separable(losses: Iterable[Tensor], parameters: Iterable[Tensor]) -> None:
    """Check that gradients can be taken ahead of the backward pass without anybody taking that for it.

    Raises:
        ValueError: A wrapper for several processes would.
    """
    static = _is_static(walk([(loss.grad_fn, 0) for loss in losses], -1, {}))
    if static or any(map(is_sharded, parameters)):
        wrapper = "DistributedDataParallel(static_graph=True) in its first step" if static else "fully_shard"
        raise ValueError(
            f"gradients are to be taken one by one, which {wrapper} does not support: check the model without it"
        )


def _is_static(found: Walk) -> bool:
    return any(node.name() == _DDP and node.ddp_weakref().static_graph for node, _ in found.edges)


def _lost(wanted: str, lost: set[str], hidden: set[str]) -> ValueError:
    return ValueError(f"{wanted} from the original graph; found {min(lost)!r} {_HIDING[min(hidden)]}")


def walk(edges: Iterable[tuple[Any, int]], fork_id: int, parameters: Mapping[str, Tensor]) -> Walk:
    """Follow every edge down to the leaves, or to the fork."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    found, stack, seen = Walk(), [(edge, True) for edge in edges], set()
    while stack:
        edge, plain = stack.pop()
        node, output = edge
        if node is None:
            continue
        mark = getattr(node, "mark", None)
        if mark is not None and mark[0] == fork_id:
            if plain:
                found.aliases.add(mark[1] + output // node.features)
                found.forks += [node] * (node not in found.forks)
            continue
        if plain:
            found.edges.add(edge)
        if node.name() in _PASSING:
            stack.append((node.next_functions[output], plain))
            continue
        if (node, plain) in seen:
            continue
        seen.add((node, plain))
        if node.name() in _HIDING:
            found.hidden.add(node.name())
            plain = False
        name = names.get(id(getattr(node, "variable", None)))
        if name is not None:
            (found.reached if plain else found.behind).add(name)
        stack.extend((below, plain) for below in node.next_functions)
    return found


def feature_edges(losses: Iterable[Tensor], fork_id: int) -> list[GradientEdge]:
    """Where the features of a fork come from, in the graph of ``losses``; empty where no gradient goes on below."""
    nodes = walk([(loss.grad_fn, 0) for loss in losses], fork_id, {}).forks
    edges = [edge for node in nodes for edge in node.next_functions[-node.features :]]
    return [GradientEdge(node, output) for node, output in edges if node is not None]


def _edges_below(node: Any) -> Sequence[tuple[Any, int]]:
    """The edges of a fork node to what it keeps (the inputs of the layer, or the features), or to the features."""
    tensors = node.next_functions[-(node.kept + node.features) :]
    return tensors[: node.kept] or tensors  # type: ignore[no-any-return]


def _measured_by(node: Any, parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """W as this node knows it: under sharding the parameters of the forward pass are not those that the module shows now."""
    measure = node.passage.keywords["measure"]
    statistic = getattr(measure, "keywords", {}).get("statistic", measure)
    held = getattr(statistic, "keywords", {}).get("parameters")
    return parameters if held is None else dict(zip(parameters, held, strict=False))
