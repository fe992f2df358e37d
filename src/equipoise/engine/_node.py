"""The fork in the graph: an identity with one output per task.

Forward, every task gets an alias of the features. Backward, the gradients of the weighted losses arrive here apart from
each other. Their sum goes on into the trunk, as if nothing had been here; what is to be known of the parts leaves the
graph as the gradient of a *probe*, a leaf tensor of zeros that is no parameter. So the node needs no second backward pass
and keeps no state of its own, and whatever holds for the gradient of a leaf (accumulation, compilation, checkpointing)
holds for the statistic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Gradients = Sequence[Tensor | None]
"""The gradient at every tensor of the features; None where the loss does not depend on it."""

Statistic = Callable[[Sequence[Tensor], Gradients], Tensor]
"""``(what was kept of the forward pass, gradients at the features) -> statistic of one task``."""


class ForkNode(torch.autograd.Function):
    """``(statistic, mark, kept, probe, *kept tensors, *features) -> aliases of the features, task by task``.

    The gradient of each of the features is the sum over the tasks; the gradient of ``probe`` is the statistic of every task,
    ``(tasks, *)``, with zeros for a task of which no gradient arrives. ``mark`` is carried for whoever walks the graph: the
    identity of the fork, and the number of its first task here. ``kept`` tells how many of the tensors are kept for the
    statistic; the others are the features.
    """

    @staticmethod
    def forward(
        statistic: Statistic, mark: tuple[int, int], kept: int, probe: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """Return a view of each of the features for every row of the probe; a copy in compiled code.

        Where views of one tensor leave a compiled region they are taken anew from that tensor, past this node. A copy that
        need not be made is left out by the compiler.
        """
        alias = torch.clone if torch.compiler.is_compiling() else _view
        return tuple(alias(feature) for _ in range(probe.shape[0]) for feature in tensors[kept:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what the statistic needs, and nothing else."""
        statistic, mark, kept, probe, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors[:kept])
        ctx.statistic, ctx.mark, ctx.kept = statistic, mark, kept
        ctx.features = len(tensors) - kept
        ctx.shape, ctx.dtype = probe.shape, probe.dtype

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        """Sum the gradients for the trunk; give the probe the statistic of each task."""
        tasks = [gradients[i : i + ctx.features] for i in range(0, len(gradients), ctx.features)]
        sums = [_sum(of_one_feature) for of_one_feature in zip(*tasks, strict=True)]
        with torch.no_grad():
            statistic = _per_task(ctx, ctx.saved_tensors, tasks)
        return None, None, None, statistic, *(None,) * ctx.kept, *sums


def _view(tensor: Tensor) -> Tensor:
    return tensor.view_as(tensor)


def _sum(gradients: Gradients) -> Tensor | None:
    arrived = [g for g in gradients if g is not None]
    if not arrived:
        return None
    total = arrived[0]
    for gradient in arrived[1:]:
        total = total + gradient
    return total


def _per_task(ctx: Any, kept: Sequence[Tensor], tasks: Sequence[Gradients]) -> Tensor | None:
    arrived = [g for task in tasks for g in task if g is not None]
    if not arrived:
        return None
    absent = torch.zeros(ctx.shape[1:], dtype=ctx.dtype, device=arrived[0].device)
    rows = [absent if all(g is None for g in task) else ctx.statistic(kept, task).to(ctx.dtype) for task in tasks]
    wanted = ctx.shape[1:]
    for row in rows:
        if row.shape != wanted:
            raise split_layer(f"a weight {tuple(wanted)} of which they give {tuple(row.shape)}")
    return torch.stack(rows)


def split_layer(found: str) -> RuntimeError:
    """The error where this process sees a part of the last shared layer only."""
    return RuntimeError(
        "the gradient of the last shared layer's weight is computed from the layer's inputs and the gradient at its outputs, "
        f"which must be whole; found {found}. Under tensor parallelism a process may see a part of them only: name the "
        "parameter, parameters=('weight',), so that it is measured from the graph"
    )
