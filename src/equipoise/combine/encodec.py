"""The balancer of EnCodec (Défossez, Copet, Synnaeve and Adi 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from equipoise.arguments import ByTask, number, numbers_by_task
from equipoise.balancer import Log, Step
from equipoise.combine.combination import FeatureGradients
from equipoise.combine.combining import CombiningBalancer
from equipoise.engine import Fork


def encodec_scales(fractions: Tensor, mean_norms: Tensor, norm: float) -> Tensor:
    r""":math:`R \, (\lambda_i / \sum_j \lambda_j) / \langle \lVert g_i \rVert \rangle_\beta`; 0 for a task without gradient."""
    return torch.where(mean_norms > 0, norm * fractions / mean_norms, 0.0)


class State(NamedTuple):
    r""":math:`\sum_k \beta^k \lVert g_i(t - k) \rVert` and :math:`\sum_k \beta^k` ``(T,)``, whose ratio is the average."""

    norm_sums: Tensor
    norm_counts: Tensor

    def after(self, norms: Tensor, decay: float) -> State:
        """One step on."""
        return State(decay * self.norm_sums + norms, decay * self.norm_counts + 1)


@final
class EnCodec(CombiningBalancer):
    r"""Each loss gets a fixed share of the gradient at the fork, whatever its size: for several losses on one output.

    With :math:`g_i` the gradient of the loss :math:`L_i` at the features, the trunk is trained with

    .. math::
        \tilde g = \sum_i R \, \frac{\lambda_i}{\sum_j \lambda_j} \, \frac{g_i}{\langle \lVert g_i \rVert \rangle_\beta}

    where the average :math:`\langle \cdot \rangle_\beta` runs exponentially over the steps, this one included,
    corrected for its start at zero. :math:`\lVert g_i \rVert` is the mean over the batch, the features' first
    dimension, of the norm of one sample's gradient.

    When to use:
        Several losses on one output (a codec, a generator with a discriminator), each of which should have a fixed
        share of the gradient, however large it is and however it drifts.

    Args:
        fork: Where the losses part: ``Fork(None, tasks)`` at the output, or any other `Fork`, at whose features it
            works.
        lambdas: :math:`\lambda_i` by task name. ``None``: all alike.
        norm: R, the norm of the gradient that goes on for one sample, were all losses to pull in one direction.
        decay: :math:`\beta` of the average, at least 0 and below 1.

    Raises:
        TypeError, ValueError: ``fork`` is not a `Fork`, or an argument is of another type or out of its range.

    Log:
        ``gradient_norms`` :math:`\lVert g_i \rVert` of this step, ``mean_gradient_norms`` the average that was divided
        by.

    Differs from the paper:
        The norm per sample is the default of the authors' code, which adds 1e-12 to the average norm; here a task whose
        gradients have all been zero is left out instead. An absent task keeps its average, and the lambdas of the
        others are taken among themselves. Where the total loss is multiplied before ``backward()``, so is the result;
        micro-batches are balanced with the last step's average and their own norms. Over P processes the result is that
        of one process with the whole batch; theirs is P times smaller.

    Example:
        >>> fork = Fork(None, tasks=("waveform", "adversarial"))
        >>> balancer = EnCodec(fork, lambdas={"waveform": 3.0, "adversarial": 1.0})
        >>> output = torch.zeros(1, 4, requires_grad=True)
        >>> signal = fork(output)
        >>> balancer({"waveform": 1e6 * signal["waveform"].sum(), "adversarial": 1e-6 * signal["adversarial"].sum()}).backward()
        >>> output.grad  # 3/4 and 1/4 of the norm 1, in the same direction
        tensor([[0.5000, 0.5000, 0.5000, 0.5000]])

    References:
        Défossez, Copet, Synnaeve, Adi 2022, High fidelity neural audio compression, the part on the balancer, and the
        authors' ``balancer.py`` (equation number not verified).
    """

    state_type = State

    def __init__(self, fork: Fork, *, lambdas: ByTask | None = None, norm: float = 1.0, decay: float = 0.999) -> None:
        super().__init__(fork, columns=("gradient_norms", "mean_gradient_norms"))
        self._lambdas = None if lambdas is None else numbers_by_task("lambdas", lambdas, self.tasks)
        self._norm, self._decay = number("norm", norm, "(0, inf)"), number("decay", decay, "[0, 1)")
        self.reset_parameters()

    def combine(self, arrived: FeatureGradients, rows: list[int]) -> tuple[Sequence[Tensor], Tensor]:
        """Scale every task's gradient."""
        norms = self._batch_norms(arrived, len(rows))
        state = State(*(value[rows] for value in self.state)).after(norms, self._decay)
        means = state.norm_sums / state.norm_counts
        lambdas = [1.0 if self._lambdas is None else self._lambdas[i] for i in rows]
        fractions = torch.tensor([value / sum(lambdas) for value in lambdas], dtype=means.dtype)
        scales = encodec_scales(fractions.to(means.device, non_blocking=True), means, self._norm)
        return [torch.tensordot(scales.to(g), g, 1) for g in arrived.gradients], torch.stack([norms, means], 1)

    def update(self, step: Step, state: State) -> tuple[Tensor, Any, Log]:
        """The average of the norms, one step on."""
        weights, _, log = super().update(step, state)
        return weights, state.after(self._means[0], self._decay), log

    def _batch_norms(self, arrived: FeatureGradients, tasks: int) -> Tensor:
        """The mean ``(T,)`` of the norms of the samples' gradients, over all features and the samples on all processes."""
        squares = [g.unsqueeze(-1).flatten(2).square().sum(-1) for g in arrived.gradients]
        norms = torch.stack(squares).sum(0).sqrt() if squares else self.weights.new_zeros(tasks, 0)
        total = self._combination.collective.sum(torch.cat([norms.sum(1), norms.new_full((1,), norms.shape[1])]))
        return (total[:-1] / total[-1]).to(self.weights.dtype)
