"""The total loss, and the note by which a step gets to know its losses.

The note leaves the graph as the gradient of a `Probe`: whatever multiplies the total loss on its way (a loss scale, one over
the number of micro-batches) multiplies the note as well, and backward passes add up.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor


class Note(NamedTuple):
    """The parts of the total losses of one step, each ``(T,)``, summed over its backward passes.

    With c the factor by which the total loss of a pass was multiplied, f the label fraction and w the weights:

    Attributes:
        losses: The sum of c f L.
        present: The sum of c f; 0 for an absent task.
        weights: The sum of c f w.
        scale: The sum of c, the same for every task.
    """

    losses: Tensor
    present: Tensor
    weights: Tensor
    scale: Tensor


NOTE_ROWS = len(Note._fields)


def noted_total(values: Tensor, weights: Tensor, fractions: Tensor, ones: Tensor, probe: Tensor) -> Tensor:
    """The total loss ``sum_i f_i w_i L_i``, whose backward pass leaves the note at ``probe``.

    All are ``(T,)`` but for the probe, a leaf of zeros ``(4, T)``. A label fraction is 0 for an absent task, and where none is
    given they are the very ``ones``.
    """
    rows = [values.detach(), ones, weights]
    if fractions is not ones:
        rows = [row * fractions for row in rows]
    return cast(Tensor, _Total.apply(values, probe, torch.stack([*rows, ones])))


class _Total(torch.autograd.Function):
    """``(losses (T,), probe (4, T), note (4, T)) -> sum_i f_i w_i L_i`` in one node of the graph."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, probe: Tensor, note: Tensor) -> Tensor:
        """The weighted sum."""
        ctx.save_for_backward(note)
        ctx.probe_dtype = probe.dtype
        return torch.dot(note[2], values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """The weights, times the label fractions, for the losses; the note for the probe."""
        (note,) = ctx.saved_tensors
        scaled = gradient * note
        return scaled[2], scaled.to(ctx.probe_dtype), None
