"""The fork in the graph: an identity with one output per task.

Forward, every task gets an alias of the features. Backward, the gradients of the weighted losses arrive here apart from
each other. Their sum goes on into the trunk, as if nothing had been here; what is to be known of the parts leaves the
graph as the gradient of a *probe*, a leaf tensor of zeros that is no parameter. So the node needs no second backward pass
and keeps no state of its own, and whatever holds for the gradient of a leaf (accumulation, compilation, checkpointing)
holds for the statistic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

Gradients = Sequence[Tensor | None]
"""The gradient at every tensor of the features; None where the loss does not depend on it."""

Statistic = Callable[[Sequence[Tensor], Gradients], Tensor]
"""``(what was kept of the forward pass, gradients at the features) -> statistic of one task``."""

Passage = Callable[[Sequence[Tensor], Sequence[Gradients], Tensor], tuple[Tensor | None, list[Tensor | None]]]
"""What happens at the fork on the way back: ``(what was kept, gradients at the features task by task, an empty tensor like
the probe's rows) -> (the probe's gradient, the gradients that go on into the trunk)``."""


class ForkNode(torch.autograd.Function):
    """``(passage, mark, kept, probe, *kept tensors, *features) -> aliases of the features, task by task``.

    What the backward pass does is the ``passage``: see `summed`. ``mark`` is carried for whoever walks the graph: the
    identity of the fork, and the number of its first task here. ``kept`` tells how many of the tensors are kept for the
    statistic; the others are the features.
    """

    @staticmethod
    def forward(
        passage: Passage, mark: tuple[int, int], kept: int, probe: Tensor, *tensors: Tensor
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
        passage, mark, kept, probe, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors[:kept])
        ctx.passage, ctx.mark, ctx.kept = passage, mark, kept
        ctx.features = len(tensors) - kept
        ctx.row = probe.detach()[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        """Hand the gradients to the passage, task by task."""
        tasks = [gradients[i : i + ctx.features] for i in range(0, len(gradients), ctx.features)]
        statistic, trunk = ctx.passage(ctx.saved_tensors, tasks, ctx.row)
        return None, None, None, statistic, *(None,) * ctx.kept, *trunk


def summed(statistic: Statistic) -> Passage:
    """The plain passage, which leaves the network's gradients as they are.

    The gradient of each of the features is the sum over the tasks; the gradient of the probe is the statistic of every task,
    ``(tasks, *)``, with zeros for a task of which no gradient arrives.
    """
    return partial(_summed, statistic=statistic)


def _summed(
    kept: Sequence[Tensor], tasks: Sequence[Gradients], row: Tensor, *, statistic: Statistic
) -> tuple[Tensor | None, list[Tensor | None]]:
    trunk = [_sum(of_one_feature) for of_one_feature in zip(*tasks, strict=True)]
    with torch.no_grad():
        return _per_task(statistic, kept, tasks, row), trunk


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


def _per_task(statistic: Statistic, kept: Sequence[Tensor], tasks: Sequence[Gradients], row: Tensor) -> Tensor | None:
    arrived = [g for task in tasks for g in task if g is not None]
    if not arrived:
        return None
    absent = torch.zeros_like(row, device=arrived[0].device)
    rows = [absent if all(g is None for g in task) else statistic(kept, task).to(row.dtype) for task in tasks]
    for found in rows:
        if found.shape != row.shape:
            raise split_layer(f"a weight {tuple(row.shape)} of which they give {tuple(found.shape)}")
    return torch.stack(rows)


def split_layer(found: str) -> RuntimeError:
    """The error where this process sees a part of the last shared layer only."""
    return RuntimeError(
        "the gradient of the last shared layer's weight is computed from the layer's inputs and the gradient at its outputs, "
        f"which must be whole; found {found}. Under tensor parallelism a process may see a part of them only: name the "
        "parameter, parameters=('weight',), so that it is measured from the graph"
    )
