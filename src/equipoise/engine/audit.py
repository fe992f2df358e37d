"""The audit of a task's first step: the source's measurement against one ``autograd.grad`` of the task's loss, by value.

The reference is taken before the backward pass, from the loss alone. Afterwards the two are compared. So whatever makes them
differ is found by one comparison, and refused with its likely cause: a loss that reads another task's features, or W past the
fork; a term of the total loss that is no task; a layer that does not compute as its rule says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from equipoise.arguments import SMALLEST
from equipoise.engine.autograd_rule import flat, is_sharded
from equipoise.engine.node import ForkNode
from equipoise.engine.rules import Gradients, squared_norm
from equipoise.engine.source import GradientSource

_HALF_SCALE = 2.0**16
"""A loss is multiplied with this where float16 is on its way to W, so that no gradient vanishes; with 1 if that overflows.

PyTorch 2.6 does not fill a tensor with a number that overflows in it: ones are multiplied.
"""

NOISE = 1e-3
"""A part of the gradient at W that is smaller than this, relative to the whole, may be zero but for rounding."""

STATIC_GRAPH = "DistributedDataParallel(static_graph=True) takes the first pass for the backward pass"


class Look(NamedTuple):
    """The gradient of one unweighted loss, by ``autograd.grad`` from its value down to W and to the aliases, and no further.

    Attributes:
        task: The number of its task.
        loss: Its value ``()``.
        row: The gradient at W, flat ``(P,)``; where there is no W, at the task's own aliases of the features.
        at_alias: The norm of the gradient at these aliases ``()``; NaN where none arrives there.
        reads: The numbers of the other tasks whose features the loss reads.
        past: How much of the gradient at W does not pass these aliases, by name; empty where that is not looked for.
    """

    task: int
    loss: Tensor
    row: Tensor
    at_alias: Tensor
    reads: Sequence[int]
    past: Mapping[str, float]


def references(source: GradientSource, losses: Mapping[str, Tensor], *, past: bool) -> list[Look]:
    """The gradients of the unweighted losses, by task name.

    Args:
        source: The measuring source; its aliases are those of the forward pass that the losses come from.
        losses: The losses.
        past: Whether ways past the fork are looked for, by a second differentiation.

    Raises:
        RuntimeError: A part of the graph can be used once only, or there is nothing to differentiate down to.
    """
    w = source.measured_parameters
    targets = {name: [parameter] for name, parameter in w.items()} or {"features": source.features}
    why = wrapper_of(losses.values(), w.values())
    if why or not any(targets.values()):
        raise RuntimeError(why or "the model was compiled as a whole, and there is no W")
    past = (past or not w) and not source.taps
    scales = scales_of(source, losses.values())
    return [look(source, task, loss, targets, scales, past=past) for task, loss in losses.items()]


def look(
    source: GradientSource,
    task: str,
    loss: Tensor,
    targets: Mapping[str, Sequence[Tensor]],
    scales: Sequence[float],
    *,
    past: bool,
) -> Look:
    """Differentiate the loss of a task down to groups of tensors, by name; see `references`."""
    number, tensors = source.tasks.index(task), [tensor for group in targets.values() for tensor in group]
    places = [(i, alias) for i, aliases in source.aliases.items() for alias in aliases]
    found: list[Tensor | None] = []
    for scale in scales:
        raw = differentiate(
            source, [loss], [*tensors, *(alias for _, alias in places)], [torch.ones_like(loss) * scale]
        )
        found = [None if g is None else g.float() / scale if g.dtype == torch.float16 else g / scale for g in raw]
        if all(g is None or bool(g.isfinite().all()) for g in found):
            break
    arrived = [(i, alias, g) for (i, alias), g in zip(places, found[len(tensors) :], strict=True)]
    reads = sorted({i for i, _, g in arrived if i != number and g is not None and g.any()})
    own = [(alias, g) for i, alias, g in arrived if i == number]
    whole = [flat([target], [g]) for target, g in zip(tensors, found, strict=False)]
    row = torch.cat(whole)
    if source.at_features:  # one feature may depend on another
        row = torch.cat([_through(source, [pair], [f])[0] for pair, f in zip(own, tensors, strict=True)])
    beyond = {}
    both = zip(whole, _through(source, own, tensors) if past else (), strict=False)
    for name, group in targets.items() if past else ():
        everything, part = (torch.cat(each) for each in zip(*islice(both, len(group)), strict=True))
        larger = torch.stack([everything.norm(), part.norm(), NOISE * row.norm()]).max()
        beyond[name] = float((everything - part).norm() / larger.clamp(min=SMALLEST))
    return Look(number, loss.detach(), row, _norm([g for _, g in own], loss), reads, beyond)


def _through(
    source: GradientSource, own: Sequence[tuple[Tensor, Tensor | None]], targets: Sequence[Tensor]
) -> list[Tensor]:
    """The part of the gradient at each target that passes these aliases, flat."""
    aliases, gradients = [alias for alias, g in own if g is not None], [g for _, g in own if g is not None]
    half = any(alias.dtype == torch.float16 for alias in aliases)  # in which a gradient may vanish
    unit = _norm(gradients, targets[0]).nan_to_num(1.0).clamp(min=SMALLEST) if half else 1.0
    seeds = [(g / unit).to(alias.dtype) for alias, g in zip(aliases, gradients, strict=True)]
    found = differentiate(source, aliases, targets, seeds)
    return [flat([target], [g]) * unit for target, g in zip(targets, found, strict=True)]


def _norm(gradients: Gradients, like: Tensor) -> Tensor:
    """The norm of all of them; NaN where there is none."""
    squares = [squared_norm(g) for g in gradients if g is not None]
    return torch.stack(squares).sum().sqrt() if squares else like.new_full((), torch.nan, dtype=torch.float64)


def differentiate(
    source: GradientSource, outputs: Sequence[Tensor], inputs: Sequence[Tensor], seeds: Sequence[Tensor] | None = None
) -> Gradients:
    """The gradients at ``inputs``, unmeasured; None where nothing depends on them. The graph and every ``.grad`` stay."""
    if not inputs or not any(output.requires_grad for output in outputs):
        return [None] * len(inputs)
    on_the_way = [*inputs, *source.features, *chain(*source.aliases.values())]
    retained = [(tensor, tensor.grad) for tensor in on_the_way if tensor.retains_grad]
    source.paused = True
    try:
        return torch.autograd.grad(outputs, inputs, seeds, retain_graph=True, allow_unused=True)
    finally:
        source.paused = False
        for tensor, gradient in retained:  # autograd.grad fills it too
            tensor.grad = gradient


def measure(source: GradientSource, total: Tensor) -> Tensor:
    """The norms ``(T,)`` that the source measures of the losses that ``total`` sums; no parameter's ``.grad`` is written."""
    for scale in scales_of(source, [total]):
        source.clear()
        if total.requires_grad:
            total.backward(torch.ones_like(total) * scale, inputs=[p.leaf for p in source._probes], retain_graph=True)
        norms = source.norms(source.measured()).double() / scale
        if norms.isfinite().all():
            break
    return norms


def deviations(norms: Tensor, expected: Tensor) -> Tensor:
    """How far ``norms`` are from those expected, relative to the larger; 0 where both are zero."""
    norms, expected = norms.double(), expected.double()
    larger = torch.maximum(norms, expected)
    return (norms - expected).abs() / torch.where(larger > 0, larger, 1.0)


def scales_of(source: GradientSource, losses: Iterable[Tensor]) -> Sequence[float]:
    """The factors of losses to be tried in turn; 1 alone where no other helps, as a backward pass may not be linear."""
    return (_HALF_SCALE, 1.0) if torch.float16 in precisions(source, losses) else (1.0,)


def precisions(source: GradientSource, losses: Iterable[Tensor]) -> set[torch.dtype]:
    """Those that a gradient passes through on its way from losses to W, also where autocast was on for a part of it."""
    losses = [*losses]
    dtypes = {t.dtype for t in (*losses, *source.measured_parameters.values(), *source.features)}
    for node in _graph(losses, down_to=ForkNode.__name__):
        dtypes.update(metadata.dtype for metadata in getattr(node, "_input_metadata", ()))
    return {dtype for dtype in dtypes if dtype.is_floating_point or dtype.is_complex}


def tolerance(dtypes: Iterable[torch.dtype]) -> float:
    """How far rounding may take the two apart: the cube root of the coarsest precision in use."""
    return float(max(torch.finfo(dtype).eps for dtype in dtypes) ** (1 / 3))


def cause(source: GradientSource, looks: Sequence[Look], seen: Look, arrived: Tensor, limit: float) -> str:
    """Why the measurement of a task is not its gradient, as it was ``seen`` among the ``looks`` at all, for a message.

    ``arrived`` is the norm that arrived at the task's alias, of the unweighted loss; NaN where it is not known.
    """
    own = source.reads.format(source.tasks[seen.task])
    one_head = "every head must read its own. Losses on one head are one task, their sum, or are measured with PerLoss"
    if seen.reads:
        wrong = ", ".join(source.reads.format(source.tasks[i]) for i in seen.reads)
        return f"its loss must depend on {own} alone; found that it reads {wrong}: {one_head}"
    readers = [source.tasks[each.task] for each in looks if seen.task in each.reads]
    if readers:
        return f"{own} is for its loss alone; found that {', '.join(map(repr, readers))} reads it: {one_head}"
    if not source.taps and seen.at_alias.isnan() and not seen.row.any():
        return f"its loss must depend on {own}; found that it does not reach the fork"
    far = past_the_fork(source, seen, limit)
    if not far and deviations(arrived, seen.at_alias) > limit:
        return (
            f"besides its loss, something else that was differentiated together with the total loss reads {own}: a term of the "
            "total loss that is no task, or two losses on one head. Give a term an alias of its own, Fork(..., "
            "others=('penalty',)), and add losses on one head up, or measure with PerLoss"
        )
    return far or (
        f"its loss must reach the last shared layer through {own} alone; found that it also reaches it past the fork, or that "
        "the layer's weight is used a second time, or that the layer does not compute as its class does. PerLoss measures "
        "such a loss; for a layer, name the parameters, parameters=('weight',), so that they are measured from the graph"
    )


def past_the_fork(source: GradientSource, seen: Look, limit: float) -> str:
    """Which of W a loss reaches otherwise than through its own alias, for a message; empty for none."""
    far = ", ".join(repr(name) for name, part in seen.past.items() if part > limit)
    return far and (
        f"its loss must reach the last shared layer through {source.reads.format(source.tasks[seen.task])} alone; found that "
        f"it also reaches {far} past the fork. PerLoss measures such a loss"
    )


def wrapper_of(losses: Iterable[Tensor], parameters: Iterable[Tensor]) -> str:
    """Which wrapper for several processes would take a gradient that is asked for for the backward pass; empty for none."""
    if any(map(is_sharded, parameters)):
        return "W is sharded, and fully_shard takes the first pass for the backward pass"
    for node in _graph(losses):
        name = node.name()
        if name == "RegisterPostBackwardFunctionBackward":
            return "fully_shard takes the first pass for the backward pass"
        if name == "_DDPSinkBackward" and node.ddp_weakref().static_graph:
            return STATIC_GRAPH
    return ""


def _graph(outputs: Iterable[Tensor], down_to: str | None = None) -> Iterator[Any]:
    """The nodes that the outputs come from, or those down to the nodes of a class of this name."""
    seen: set[Any] = set()
    stack = [output.grad_fn for output in outputs]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            if down_to is None or not node.name().startswith(down_to):
                stack.extend(below for below, _ in node.next_functions)
