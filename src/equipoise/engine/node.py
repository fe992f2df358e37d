"""The fork in the graph: an identity with one output per task.

Forward, every task gets a view of the features, its alias. Backward, the gradients of the weighted losses arrive here apart
from each other; their sum goes on into the trunk, as if nothing had been here, and each is measured on the way, while it is in
the cache. What was measured leaves the graph as the gradient of a `Probe`. So there is no second backward pass, the node keeps
no state of its own, and whatever holds for the gradient of a leaf (accumulation, compilation, checkpointing) holds here.

There are two forms of the measurement. Either row i of the probe is the gradient of task i at W, which adds up over backward
passes and processes. Or the probe has the squared norms of these gradients and, below them, how many nodes each is the sum of:
that needs no room, but is exact only where this number is 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from equipoise.engine.rules import Gradients, LayerRule


class Watch(Protocol):
    """Who is told, outside of compiled code, which tasks' gradients have arrived; see `GradientSource`."""

    paused: bool

    def arrived(self, call: ForkCall, tasks: Sequence[int], gradients: Sequence[Gradients]) -> None:
        """The gradients of these of its tasks have arrived at a node."""


@dataclass(frozen=True)
class ForkCall:
    """One call of a fork: what its node is to do.

    Attributes:
        rule: How a gradient at W follows from one at the features.
        gradients: Whether the probe gets the gradients at W, and not their squared norms.
        probe: The number of its probe among those of the source.
        first: The number of the first task here.
        tasks: How many tasks are measured.
        others: How many further aliases are handed out that belong to no task.
        kept: How many tensors are kept for the rule.
        watch: Who is told what arrives; None in compiled code.
    """

    rule: LayerRule
    gradients: bool
    probe: int
    first: int
    tasks: int
    others: int
    kept: int
    watch: Watch | None


@dataclass
class AuditedCall:
    """A forward pass that is kept for the audit, until the next one after its backward pass.

    Attributes:
        call: The call of the fork.
        aliases: The aliases of each of its tasks, one after the other.
        features: The features.
        arrived: Whether a backward pass has come through.
    """

    call: ForkCall
    aliases: list[list[Tensor]]
    features: list[Tensor]
    arrived: bool = False


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
        if torch.compiler.is_compiling():
            return tuple(feature.clone() for _ in range(aliases) for feature in features)
        views = [feature.expand(aliases, *feature.shape).unbind() for feature in features]
        return views[0] if len(views) == 1 else tuple(view for alias in zip(*views, strict=True) for view in alias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        """Measure every task's gradients at the features, and add them up."""
        call, size, kept = ctx.call, ctx.features, ctx.saved_tensors
        measure = call.watch is None or (not call.watch.paused and reaches_the_probe(ctx))
        differentiable = torch.is_grad_enabled()
        number = call.rule.gradient if call.gradients else call.rule.squared_norm
        places: list[int] = []
        found: list[Tensor] = []
        sums: list[Tensor | None] = [None] * size
        owned = [False] * size
        aliases = [gradients[i : i + size] for i in range(0, len(gradients), size)]
        for place, own in enumerate(aliases):
            if own[0] is None and all(g is None for g in own):
                continue
            if measure and place < call.tasks:  # first, while the gradient is in the cache
                places.append(place)
                with torch.no_grad() if differentiable else _NOTHING:
                    found.append(number(kept, own))
            for i, g in enumerate(own):
                total = sums[i]
                if total is None or g is None:
                    sums[i] = g if total is None else total
                elif owned[i] and not differentiable:
                    total.add_(g)  # takes no more room, but cannot be differentiated
                else:
                    sums[i], owned[i] = total + g, True
        if call.watch is not None and measure:
            call.watch.arrived(call, places, [aliases[place] for place in places])
        with torch.no_grad() if differentiable else _NOTHING:
            rows = _rows(found, places, call, ctx.columns, ctx.dtype) if found else None
        return None, rows, *(None,) * call.kept, *sums


_NOTHING: AbstractContextManager[None] = nullcontext()


def reaches_the_probe(ctx: Any) -> bool:
    """Whether this pass leaves something at the probe; ``autograd.grad`` for other tensors does not, and is let through."""
    return torch.compiler.is_compiling() or torch._C._will_engine_execute_node(ctx.next_functions[0][0])


def _rows(found: list[Tensor], places: list[int], call: ForkCall, columns: int, dtype: torch.dtype) -> Tensor:
    """What goes to the probe: ``(T, P)`` gradients, or squared norms and counts ``(2, T)``."""
    if call.gradients:
        rows = found[0].new_zeros(call.tasks, columns, dtype=dtype)
        for place, gradient in zip(places, found, strict=True):
            rows[place] = gradient.reshape(-1)
        return rows
    squares = torch.stack(found).to(dtype).clamp(min=0)  # rounding may leave less than nothing
    rows = torch.stack([squares, torch.ones_like(squares)])
    if len(places) == call.tasks:
        return rows
    whole = rows.new_zeros(2, call.tasks)
    for i, place in enumerate(places):
        whole[:, place] = rows[:, i]
    return whole


class NamedAlias(torch.autograd.Function):
    """An identity whose name PyTorch prints where a head works in place on its output."""

    @staticmethod
    def forward(ctx: Any, alias: Tensor) -> Tensor:
        """Return a view."""
        return alias.view_as(alias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Hand the gradient on."""
        return gradient


def named(task: str, alias: Tensor) -> Tensor:
    """The alias under a name that tells, in PyTorch's own error, which head works in place on it, and the remedy."""
    text = (
        f"[the features of task {task!r}; its head must not work in place on them: use inplace=False or clone() first]"
    )
    function: type[torch.autograd.Function] = type(text, (NamedAlias,), {})
    return function.apply(alias)  # type: ignore[no-any-return]
