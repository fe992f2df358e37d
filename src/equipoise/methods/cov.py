"""Weighting by the coefficient of variation (Groenendijk, Karaoglu, Gevers and Mensink 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from equipoise.balancers._balancer import Step
from equipoise.balancers._positive_losses import PositiveLossBalancer
from equipoise.balancers._shares import in_proportion
from equipoise.engine import Source


def coefficients_of_variation(mean: Tensor, squares: Tensor, counts: Tensor) -> Tensor:
    r""":math:`c_i = \sigma_i / \mu_i` of the loss ratios.

    As in the authors' code, :math:`\sigma_i = \sqrt{S_i / n_i + 10^{-8}}`, with the sum S of squared deviations.
    """
    return (squares / counts + 1e-8).sqrt() / mean


@final
class CoV(PositiveLossBalancer):
    r"""Weights from how much each loss varies, relative to its size.

    .. math:: w_i = T \frac{c_i}{\sum_j c_j}, \qquad c_i = \frac{\sigma_{\ell_i}}{\mu_{\ell_i}}, \qquad
        \ell_i(t) = \frac{L_i(t)}{\mu_{L_i}(t - 1)}

    with the means and the standard deviation over all steps so far. A loss that has settled weighs less, and the unit of a
    loss does not matter.

    When to use:
        Many loss terms of one output, where those that have settled shall give way to those that still move.

    Args:
        tasks: The fork (or what `attach` or `PerLoss` give), or the names of the tasks.
        every: Gradient norms are measured for the log at each ``every``-th step; ``None``: never.
        start: The number of steps before the weights begin to move.

    Raises:
        ValueError: A loss is not positive; the message names the task. On an accelerator only a task's first loss is looked
            at, and later such a step is skipped and counted.

    Differs from the paper:
        The weights sum to T instead of 1, which keeps the network's effective learning rate that of equal weights. As in the
        authors' code, the weights of a step come from the losses of the steps before it, equal ones until there are two.
        The code's option of a decaying mean is left out.

    Example:
        >>> CoV(("depth", "smoothness")).weights
        tensor([1., 1.])

    References:
        Groenendijk, Karaoglu, Gevers, Mensink 2021, Multi-loss weighting with coefficient of variations, section 3 (equation
        number not verified), and the authors' code, ``losses/covweighting_loss.py``.
    """

    mean_losses: Tensor
    mean_ratios: Tensor
    squares: Tensor
    counts: Tensor

    def __init__(self, tasks: Source | Sequence[str], *, every: int | None = None, start: int = 0) -> None:
        super().__init__(tasks, every=every, start=start)
        for name in ("mean_losses", "mean_ratios", "squares"):
            self.register_buffer(name, torch.zeros_like(self.weights))
        self.register_buffer("counts", torch.zeros_like(self.weights, dtype=torch.int64))

    def _update(self, step: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        losses, present = step.losses, step.present
        counts = self.counts + present
        n = counts.clamp(min=1)
        ratios = losses / torch.where(self.counts > 0, self.mean_losses, losses)
        mean_ratios = self.mean_ratios + (ratios - self.mean_ratios) / n
        squares = self.squares + (ratios - self.mean_ratios) * (ratios - mean_ratios)
        mean_losses = self.mean_losses + (losses - self.mean_losses) / n
        variation = coefficients_of_variation(mean_ratios, squares, n)
        state = {
            "mean_losses": torch.where(present, mean_losses, self.mean_losses),
            "mean_ratios": torch.where(present, mean_ratios, self.mean_ratios),
            "squares": torch.where(present, squares, self.squares),
            "counts": counts,
            "weights": in_proportion(variation, present & (counts >= 2), self.weights),
        }
        return state, {}
