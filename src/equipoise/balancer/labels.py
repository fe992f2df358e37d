"""Samples without label: losses as means over those that have one, and micro-batches with different numbers of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from equipoise.arguments import known_tasks, number
from equipoise.balancer.losses import Losses


def masked_mean(values: Tensor, mask: Tensor) -> Tensor | None:
    r"""The mean of ``values`` over the samples that have a label; ``None`` if none has.

    .. math:: L_i = \frac{1}{n_i} \sum_{b \in \mathrm{labelled}} \ell_{i,b}

    The divisor is the number of labelled samples :math:`n_i`. With the size of the batch instead, the loss, its training
    rate and its gradient norm would depend on the share of samples that have a label.

    Whether there is a label is decided on the host, so the call waits for a mask that is on an accelerator. Pass a mask on
    the CPU, as the data loader makes it, and nothing waits.

    Args:
        values: The loss of every sample, without reduction.
        mask: Which samples have a label, bool.

    Returns:
        A scalar, in single precision at least, or ``None``: both can be passed to a balancer. For micro-batches and processes
        with different numbers of labels see ``label_fractions`` of `Balancer.forward`.

    Raises:
        TypeError: The mask is not bool.
        ValueError: The mask does not have the shape of ``values``, or of its first dimensions. On the CPU, where it can be
            seen without waiting, also: the loss of a sample without label is not finite, so that its gradient would be NaN
            (zero times infinity). Replace a missing label by a number before the loss is computed.

    Shape:
        ``values`` is ``(B, *)``; ``mask`` is ``(B,)``, or more of the dimensions of ``values``, from the first on.

    Units:
        Those of ``values``.

    Example:
        >>> errors = torch.tensor([1.0, 3.0, 100.0])
        >>> masked_mean(errors, torch.tensor([True, True, False]))
        tensor(2.)
        >>> masked_mean(errors, torch.tensor([False, False, False])) is None
        True
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, True where there is a label; found {mask.dtype}")
    if mask.shape != values.shape[: mask.dim()]:
        raise ValueError(
            f"mask must have the shape of values, {tuple(values.shape)}, or of its first dimensions; found {tuple(mask.shape)}"
        )
    labelled = int(mask.sum())
    if not labelled:
        return None
    there = mask.to(values.device, non_blocking=True).reshape((*mask.shape, *(1,) * (values.dim() - mask.dim())))
    if values.device.type == "cpu" and not (values.detach().isfinite() | there).all():
        raise ValueError(
            "values: the loss of a sample without label must be finite all the same, or its gradient is NaN; found one that is "
            "not. Put a number in the place of the missing label before the loss: torch.where(mask, labels, 0.0)"
        )
    total = torch.where(there, values, 0.0).sum(dtype=torch.promote_types(values.dtype, torch.float32))
    return total / (labelled * (values.numel() // mask.numel()))


def fractions_of(fractions: Any, losses: Losses, tasks: Sequence[str]) -> Tensor:
    """The label fractions ``(T,)``: positive for a task with a loss, 0 for one without; anything else is refused by name."""
    known_tasks("label_fractions", fractions, tasks)
    present = losses.present or (True,) * len(tasks)
    found = []
    for task, here in zip(tasks, present, strict=True):
        value = number(f"label_fractions: task {task!r}: its value", fractions.get(task, 0.0), "[0, inf)")
        if here != (value > 0):
            wanted = "a loss, so its fraction must be positive" if here else "no loss, so its fraction must be 0"
            raise ValueError(f"label_fractions: task {task!r} has {wanted}; found {value}")
        found.append(value)
    values = losses.values
    return torch.tensor(found, dtype=values.dtype).to(values.device, non_blocking=True)  # the host does not wait
