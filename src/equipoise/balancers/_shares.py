"""Shares of the sum of the weights, which is the number of tasks."""

from __future__ import annotations

import torch
from torch import Tensor


def in_proportion(values: Tensor, present: Tensor, weights: Tensor) -> Tensor:
    """Weights in proportion to ``values``, such that all weights sum to T.

    Args:
        values: Numbers that are not negative ``(T,)``; those of absent tasks mean nothing.
        present: Which tasks share ``(T,)``, bool.
        weights: The weights so far ``(T,)``: absent tasks keep theirs, and the others share the rest of T.
    """
    rest = len(weights) - torch.where(present, 0.0, weights).sum()
    values = torch.where(present, values, 0.0)
    return torch.where(present, rest * values / values.sum(), weights)


def softmax(scores: Tensor, present: Tensor) -> Tensor:
    """The softmax over the tasks present ``(T,)``; zero for the others."""
    return torch.where(present, scores, -torch.inf).softmax(0)
