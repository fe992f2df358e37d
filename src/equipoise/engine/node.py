"""The fork in the graph: an identity with one output per task.

Forward, every task gets a view of the features, its alias. Backward, the gradients of the weighted losses arrive here apart
from each other; their sum goes on into the trunk, as if nothing had been here, and each is measured on the way, while it is in
the cache. The measurement leaves the graph as the gradient of a `Probe`. So there is no second backward pass, the node keeps
no state of its own, and whatever holds for the gradient of a leaf (accumulation, compilation, checkpointing) holds here.

There are two forms of the measurement. Either row i of the probe is the gradient of task i at W, which adds up over backward
passes and processes. Or the probe has the squared norms of these gradients and, below them, how many nodes each is the sum of:
that needs no room, but is exact only where this number is 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from equipoise.engine.rules import LayerRule

if TYPE_CHECKING:
    from equipoise.engine.source import GradientSource


class ForkCall(NamedTuple):
    """One call of a fork, and the work of its node.

    Attributes:
        rule: How a gradient at W follows from one at the features.
        gradients: Whether the probe gets the gradients at W, and not their squared norms.
        first: The number of the first task here, and of the probe.
        tasks: How many tasks are measured.
        others: How many further aliases are handed out that belong to no task.
        kept: How many tensors are kept for the rule.
        source: Where arrivals are counted; None in compiled code.
    """

    rule: LayerRule
    gradients: bool
    first: int
    tasks: int
    others: int
    kept: int
    source: GradientSource | None


class ForkNode(torch.autograd.Function):
    """``(call, probe, *kept tensors, *features) -> aliases of the features``, alias after alias."""

    @staticmethod
    def forward(ctx: Any, call: ForkCall, probe: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return a view of each of the features for every alias; a copy in compiled code.

        Where views of one tensor leave a compiled region they are taken anew from that tensor, past this node. A copy that
        need not be made is left out by the compiler.
        """
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors[: call.kept])
        ctx.call, ctx.columns, ctx.dtype = call, probe.shape[-1], probe.dtype
        features = tensors[call.kept :]
        ctx.features = len(features)
        aliases = call.tasks + call.others
        if call.source is None:
            return tuple(feature.clone() for _ in range(aliases) for feature in features)
        views = [feature.expand(aliases, *feature.shape).unbind() for feature in features]
        return views[0] if len(views) == 1 else tuple(view for alias in zip(*views, strict=True) for view in alias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        """Measure every task's gradients at the features, and add them up."""
        call, size, kept = ctx.call, ctx.features, ctx.saved_tensors
        measure = call.source is None or (not call.source.paused and reaches_the_probe(ctx))
        differentiable = torch.is_grad_enabled()
        number = call.rule.gradient if call.gradients else call.rule.squared_norm
        found: dict[int, Tensor] = {}
        sums: list[Tensor | None] = [None] * size
        owned = [False] * size
        for place in range(len(gradients) // size):
            own = gradients[place * size : (place + 1) * size]
            if own[0] is None and all(g is None for g in own):
                continue
            if measure and place < call.tasks:  # first, while the gradient is in the cache
                seen = own if not differentiable else [None if g is None else g.detach() for g in own]
                found[place] = number(kept, seen)
            for i, g in enumerate(own):
                total = sums[i]
                if total is None or g is None:
                    sums[i] = g if total is None else total
                elif owned[i] and not differentiable:
                    total.add_(g)  # takes no more room, but cannot be differentiated
                else:
                    sums[i], owned[i] = total + g, True
        if call.source is not None and measure:
            call.source.arrived(call, found, gradients)
        rows = rows_of(found, call.gradients, call.tasks, ctx.columns, ctx.dtype) if found else None
        return None, rows, *(None,) * call.kept, *sums


def reaches_the_probe(ctx: Any) -> bool:
    """Whether this pass leaves something at the probe; ``autograd.grad`` for other tensors does not, and is let through."""
    return torch.compiler.is_compiling() or torch._C._will_engine_execute_node(ctx.next_functions[0][0])


def rows_of(found: dict[int, Tensor], gradients: bool, tasks: int, columns: int, dtype: torch.dtype) -> Tensor:
    """The gradient of the probe from each task's measurement: gradients ``(T, P)``, or squared norms and counts ``(2, T)``."""
    if gradients:
        rows = next(iter(found.values())).new_zeros(tasks, columns, dtype=dtype)
        for place, gradient in found.items():
            rows[place] = gradient.reshape(-1)
        return rows
    squares = torch.stack([*found.values()]).to(dtype).clamp(min=0)  # rounding may leave less than nothing
    rows = torch.stack([squares, torch.ones_like(squares)])
    if len(found) == tasks:
        return rows
    whole = rows.new_zeros(2, tasks)
    for i, place in enumerate(found):
        whole[:, place] = rows[:, i]
    return whole
