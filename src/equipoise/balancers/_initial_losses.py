"""L_i(0): where a task started from."""

from __future__ import annotations

import torch
from torch import Tensor

from equipoise.balancers._present import mean_over


def initial_losses_after(initial: Tensor, seen: Tensor, losses: Tensor, present: Tensor, steps: int) -> Tensor:
    """``L_i(0)`` as the mean of a task's first ``steps`` losses, kept up step by step.

    A task's losses count from its own first appearance on, so a task that starts late starts from its own first loss.

    Args:
        initial: The mean so far ``(T,)``; NaN for a task not yet seen.
        seen: How many losses it is the mean of ``(T,)``.
        losses: This step's losses ``(T,)``.
        present: Which tasks took part ``(T,)``.
        steps: How many losses the mean takes; after that it stays.
    """
    mean = (initial.nan_to_num(0.0) * seen + losses) / (seen + 1)
    return torch.where(present & (seen < steps), mean, initial)


def check_initial_loss(task: str, loss: float) -> None:
    """Refuse an initial loss by which nothing can be divided.

    Raises:
        ValueError: It is not positive; the message names the task.
    """
    if not loss > 0:
        raise ValueError(
            f"task {task!r}: its initial loss L(0) must be positive, since losses are divided by it; found {loss}. "
            "Hand in initial_losses if the first batch is no measure of it"
        )


def training_rates(losses: Tensor, initial_losses: Tensor, present: Tensor) -> Tensor:
    r"""The relative inverse training rates, :math:`r_i = \tilde L_i / \mathrm{mean}_j \tilde L_j`.

    :math:`\tilde L_i = L_i(t) / L_i(0)`; ``r_i > 1`` means that task i is slow. The mean runs over the tasks present.

    Shape:
        All ``(T,)``.

    Units:
        None.

    References:
        Chen et al. 2018, GradNorm, section 3.1.
    """
    ratios = losses / initial_losses
    mean = mean_over(ratios, present)
    return ratios / mean
