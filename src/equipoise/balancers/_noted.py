"""The total loss, and the way by which a step gets to know what it was made of.

What the step needs to know leaves the graph as the gradient of a *probe*, a leaf of zeros: whatever multiplies the total loss
on its way (a loss scale, one over the number of micro-batches) multiplies these numbers as well, and backward passes add up.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor


class Noted(NamedTuple):
    """What was noted, each ``(T,)``: everything but the losses still multiplied by what the total loss was multiplied with.

    Attributes:
        losses: The losses, those of the whole batch; zero where absent.
        present: Which tasks took part, bool.
        scaled_weights: What the losses were weighted with.
        scale: What the total loss was multiplied with, the same for every task.
    """

    losses: Tensor
    present: Tensor
    scaled_weights: Tensor
    scale: Tensor


def new_probe(weights: Tensor) -> Tensor:
    """A leaf of zeros whose gradient is what is noted."""
    return torch.zeros(4, len(weights), dtype=weights.dtype, device=weights.device, requires_grad=True)


def noted_total(
    values: Tensor, weights: Tensor, present: Tensor, share: Tensor | None, everyone: Tensor, probe: Tensor
) -> Tensor:
    """The total loss ``sum_i w_i L_i``, ``sum_i share_i w_i L_i`` with shares, that gives the probe what is noted.

    Args:
        values: The losses ``(T,)``.
        weights: Their weights ``(T,)``.
        present: Which tasks are present ``(T,)``, bool.
        share: What this part of the batch contributes to each task ``(T,)``.
        everyone: True for all ``(T,)``.
        probe: The probe.
    """
    part = contributed(values, share)
    note = torch.stack([part.detach(), contributed(present, share), weights.to(part.dtype), everyone])
    return cast(Tensor, _Total.apply(part, probe, note))


def read(note: Tensor) -> Noted:
    """What is noted in the gradient of a probe."""
    scaled_losses, scaled_present, scaled_weights, scale = note
    present = scaled_present != 0
    return Noted(scaled_losses / torch.where(present, scaled_present, 1.0), present, scaled_weights, scale)


def contributed(values: Tensor, share: Tensor | None) -> Tensor:
    """What a part of the step's samples contributes."""
    return values if share is None else share * values


class _Total(torch.autograd.Function):
    """``(losses (T,), probe (4, T) of zeros, note (4, T)) -> sum_i w_i L_i``, with the weights in row 2 of the note.

    It is that sum plus the sum over probe times note, in one node of the graph.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, probe: Tensor, note: Tensor) -> Tensor:
        """The weighted sum."""
        ctx.save_for_backward(note)
        return torch.dot(note[2], values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """The weights for the losses, the note for the probe."""
        (note,) = ctx.saved_tensors
        scaled = gradient * note
        return scaled[2], scaled, None
