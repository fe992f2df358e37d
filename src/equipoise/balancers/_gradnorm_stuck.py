"""Tasks that are stuck: the limitation that the GradNorm paper states, detected online."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from equipoise.balancers._balancer import Step

FALL = 0.05
"""The share by which a loss must fall to have fallen."""


class Plateau(NamedTuple):
    """What is remembered of every task's loss, each ``(T,)``.

    Attributes:
        mean: The running mean of the loss ratio, not yet corrected for its start from zero.
        steps: The steps that it is a mean of.
        lowest: The running mean where it last fell.
        waited: The task's steps since then.
        weight: The task's weight then.
    """

    mean: Tensor
    steps: Tensor
    lowest: Tensor
    waited: Tensor
    weight: Tensor

    @classmethod
    def start(cls, ones: Tensor) -> Plateau:
        """Nothing seen yet."""
        none = torch.zeros_like(ones, dtype=torch.int64)
        return cls(torch.zeros_like(ones), none, ones * float("inf"), none.clone(), ones.clone())

    def ratios(self, patience: int) -> Tensor:
        """The running mean of the loss ratios ``(T,)``."""
        return self.mean / (1 - (1 - 1 / patience) ** self.steps.clamp(min=1))


def plateau_after(plateau: Plateau, step: Step, weights: Tensor, patience: int) -> Plateau:
    """What is remembered after this step; absent tasks keep theirs."""
    ratios = torch.where(step.present, step.losses / step.initial_losses, 0.0)
    mean = torch.where(step.present, plateau.mean + (ratios - plateau.mean) / patience, plateau.mean)
    after = plateau._replace(mean=mean, steps=plateau.steps + step.present)
    smooth = after.ratios(patience)
    fell = step.present & (smooth < (1 - FALL) * plateau.lowest)
    return after._replace(
        lowest=torch.where(fell, smooth, plateau.lowest),
        waited=torch.where(fell, 0, plateau.waited + step.present),
        weight=torch.where(fell, weights, plateau.weight),
    )


def stuck_tasks(plateau: Plateau, step: Step, weights: Tensor, patience: int) -> Tensor:
    r"""Which tasks are stuck ``(T,)``, bool: slow, and a larger weight does not help.

    With :math:`\tilde L_i` smoothed over ``patience`` steps, a task is stuck while all of these hold:

    - :math:`\tilde L_i` has not fallen by 5 per cent in its last ``patience`` steps;
    - its weight is no smaller than when it last did;
    - it is slow: :math:`\tilde L_i` is above the mean over the tasks present.

    Not all tasks can be slow, so there is always one that is not stuck.
    """
    smooth = plateau.ratios(patience)
    mean = torch.where(step.present, smooth, 0.0).sum() / step.present.sum()
    stuck = step.present & (plateau.waited >= patience) & (weights >= plateau.weight) & (smooth > mean)
    return stuck & ~(stuck | ~step.present).all()  # rounding may put equal tasks above their mean
