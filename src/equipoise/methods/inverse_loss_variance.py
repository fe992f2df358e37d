"""Weights from variances: of the targets, or of the losses as they come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from equipoise.balancers._balancer import Balancer, Step
from equipoise.balancers._given import positive_by_task
from equipoise.balancers._shares import in_proportion
from equipoise.engine import Source


def inverse_variance_weights(variances: Tensor, known: Tensor, weights: Tensor) -> Tensor:
    r""":math:`w_i \propto 1 / \sigma_i^2` with :math:`\sum_i w_i = T`; a task whose variance is not known keeps its weight."""
    return in_proportion(1 / variances, known, weights)


@final
class InverseTargetVariance(Balancer):
    r"""Constant weights :math:`w_i \propto 1 / \mathrm{Var}[y_i]`, scaled so that :math:`\sum_i w_i = T`.

    For squared errors this is the same as training on targets of unit variance, whatever their units.

    When to use:
        Regressions with squared errors whose targets were not standardised, and cannot be.

    Args:
        tasks: The fork (or what `attach` or `PerLoss` give), or the names of the tasks.
        variances: The variance of every task's targets, by name.
        every: Gradient norms are measured for the log at each ``every``-th step; ``None``: never.

    Raises:
        ValueError: A task is unknown or missing, or a variance is not positive and finite; the message names it.

    Differs from the paper:
        There is none; the weights are those at which uncertainty weighting of regressions that predict the mean is at rest.

    Example:
        >>> InverseTargetVariance(("metres", "centimetres"), variances={"metres": 1.0, "centimetres": 1e4}).weights
        tensor([1.9998e+00, 1.9998e-04])
    """

    def __init__(
        self, tasks: Source | Sequence[str], *, variances: Mapping[str, float], every: int | None = None
    ) -> None:
        super().__init__(tasks, every=every)
        given = self.weights.new_tensor(positive_by_task("variances", variances, self.tasks))
        known = torch.ones_like(given, dtype=torch.bool)
        self.weights.copy_(inverse_variance_weights(given, known, self.weights))

    def _update(self, step: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {}, {}


@final
class InverseLossVariance(Balancer):
    r"""Weights :math:`w_i \propto 1 / \mathrm{Var}[L_i]` of the losses so far, with :math:`\sum_i w_i = T`.

    A task whose loss scatters over the batches, or still falls, weighs less. Mean and variance are running ones:

    .. math:: \mu \leftarrow \mu + a\,(L - \mu), \qquad \sigma^2 \leftarrow (1 - a)(\sigma^2 + a\,(L - \mu)^2)

    with the step :math:`a = \max(1 - \mathrm{decay}, 1 / n)` at a task's n-th loss: over its first losses, and with a decay
    of 1 over all, they are the plain mean and variance.

    When to use:
        Losses that scatter differently over the batches. A loss that still falls counts as scattered and is held back:
        not for tasks that start at different times.

    Args:
        tasks: The fork (or what `attach` or `PerLoss` give), or the names of the tasks.
        decay: How much of the running values remains at each step, in (0, 1].
        every: Gradient norms are measured for the log at each ``every``-th step; ``None``: never.
        start: The number of steps before the weights begin to move.

    Raises:
        ValueError: ``decay`` does not lie in (0, 1].

    Units:
        The variance has the square of the loss's unit. In a unit ten times smaller, a loss is ten times larger, its weight a
        hundred times smaller, and what it contributes to the total ten times smaller.

    Differs from the paper:
        There is none. A task whose loss has not varied yet keeps its weight, 1 at the start.

    Example:
        >>> InverseLossVariance(("price", "risk"), decay=0.99).weights
        tensor([1., 1.])

    References:
        Welford 1962, Note on a method for calculating corrected sums of squares and products, for the running variance.
    """

    means: Tensor
    variances: Tensor
    counts: Tensor

    def __init__(
        self, tasks: Source | Sequence[str], *, decay: float = 0.99, every: int | None = None, start: int = 0
    ) -> None:
        super().__init__(tasks, every=every, start=start)
        if not 0 < decay <= 1:
            raise ValueError(f"decay must lie in (0, 1]; found {decay}")
        self._decay = decay
        for name in ("means", "variances"):
            self.register_buffer(name, torch.zeros_like(self.weights))
        self.register_buffer("counts", torch.zeros_like(self.weights, dtype=torch.int64))

    def _update(self, step: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        counts = self.counts + step.present
        rate = (1 / counts.clamp(min=1).to(self.means.dtype)).clamp(min=1 - self._decay)
        difference = step.losses - self.means
        means = torch.where(step.present, self.means + rate * difference, self.means)
        variances = (1 - rate) * (self.variances + rate * difference.square())
        variances = torch.where(step.present, variances, self.variances)
        state = {
            "means": means,
            "variances": variances,
            "counts": counts,
            "weights": inverse_variance_weights(variances, step.present & (variances > 0), self.weights),
        }
        return state, {}
