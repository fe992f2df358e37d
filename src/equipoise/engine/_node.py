"""The fork in the graph: an identity with one output per task.

Forward, every task gets an alias of the features; those that are not to be measured may share one. Backward, the gradients
of the weighted losses arrive here apart from each other. Their sum goes on into the trunk, as if nothing had been here; what
is to be known of the parts leaves the graph as the gradient of a *probe*, a leaf tensor of zeros that is no parameter. So the
node needs no second backward pass and keeps no state of its own, and whatever holds for the gradient of a leaf (accumulation,
compilation, checkpointing) holds for the statistic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Gradients = Sequence[Tensor | None]
"""The gradient at every tensor of the features; None where the loss does not depend on it."""

Passage = Callable[[Sequence[Tensor], Sequence[Gradients], Tensor], tuple[Tensor | None, list[Tensor | None]]]
"""What happens at the fork on the way back: ``(what was kept of the forward pass, gradients at the features alias by alias,
an empty row of the probe) -> (the probe's gradient, the gradients that go on into the trunk)``."""


class ForkNode(torch.autograd.Function):
    """``(passage, mark, aliases, kept, probe, *kept tensors, *features) -> that many aliases of the features``.

    What the backward pass does is the ``passage``: see `_passages`. ``mark`` is carried for whoever walks the graph: the
    identity of the fork, and the number of its first task here. ``kept`` tells how many of the tensors are kept for the
    statistic; the others are the features.
    """

    @staticmethod
    def forward(
        ctx: Any, passage: Passage, mark: tuple[int, int], aliases: int, kept: int, probe: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """Return a view of each of the features for every alias; a copy in compiled code.

        Where views of one tensor leave a compiled region they are taken anew from that tensor, past this node. A copy that
        need not be made is left out by the compiler.
        """
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors[:kept])
        ctx.passage, ctx.mark, ctx.kept = passage, mark, kept
        ctx.features = len(tensors) - kept
        ctx.row = probe.detach()[0]
        alias = torch.clone if torch.compiler.is_compiling() else _view
        return tuple(alias(feature) for _ in range(aliases) for feature in tensors[kept:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        """Hand the gradients to the passage, alias by alias."""
        aliases = [gradients[i : i + ctx.features] for i in range(0, len(gradients), ctx.features)]
        statistic, trunk = ctx.passage(ctx.saved_tensors, aliases, ctx.row)
        return None, None, None, None, statistic, *(None,) * ctx.kept, *trunk


def _view(tensor: Tensor) -> Tensor:
    return tensor.view_as(tensor)
