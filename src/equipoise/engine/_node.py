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

Statistic = Callable[[Tensor, Tensor], Tensor]
"""``(inputs of the shared layer, gradient at the features) -> statistic of one task``."""


class ForkNode(torch.autograd.Function):
    """``(features, inputs, probe) -> T aliases of the features``.

    The gradient of ``features`` is the sum over the tasks; the gradient of ``probe`` is the statistic of every task,
    ``(T, *)``, with zeros for a task of which no gradient arrives.
    """

    @staticmethod
    def forward(
        features: Tensor, inputs: Tensor, probe: Tensor, statistic: Statistic, fork_id: int
    ) -> tuple[Tensor, ...]:
        """Return one view of the features per row of the probe."""
        return tuple(features.view_as(features) for _ in range(probe.shape[0]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what the statistic needs: the layer's inputs, which its own backward keeps as well."""
        _, layer_inputs, probe, statistic, fork_id = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(layer_inputs)
        ctx.statistic = statistic
        ctx.shape, ctx.dtype = probe.shape, probe.dtype
        ctx.fork_id = fork_id

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None, Tensor | None, None, None]:
        """Sum the gradients for the trunk; give the probe the statistic of each."""
        arrived = [g for g in gradients if g is not None]
        if not arrived:
            return None, None, None, None, None
        (inputs,) = ctx.saved_tensors
        return _sum(arrived), None, _per_task(ctx, inputs, gradients, arrived[0]), None, None


def _sum(gradients: Sequence[Tensor]) -> Tensor:
    total = gradients[0]
    for gradient in gradients[1:]:
        total = total + gradient
    return total


def _per_task(ctx: Any, inputs: Tensor, gradients: Sequence[Tensor | None], like: Tensor) -> Tensor:
    absent = torch.zeros(ctx.shape[1:], dtype=ctx.dtype, device=like.device)
    return torch.stack([absent if g is None else ctx.statistic(inputs, g).to(ctx.dtype) for g in gradients])
