"""The balancer of EnCodec (Défossez, Copet, Synnaeve and Adi 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from equipoise.balancers._balancer import Step
from equipoise.balancers._combining import CombiningBalancer
from equipoise.balancers._given import positive_by_task
from equipoise.engine import Arrived, Fork


def encodec_scales(shares: Tensor, mean_norms: Tensor, norm: float) -> Tensor:
    r""":math:`R \, (\lambda_i / \sum_j \lambda_j) / \langle \lVert g_i \rVert \rangle_\beta`; 0 for a task without gradient."""
    return torch.where(mean_norms > 0, norm * shares / shares.sum() / mean_norms, 0.0)


def sample_norms(gradients: Sequence[Tensor]) -> Tensor:
    r"""The norm of every sample's gradient, ``(T, B)``, over all features together."""
    squares = [g.reshape(*g.shape[:2], -1).square().sum(-1) for g in gradients]
    return torch.stack(squares).sum(0).sqrt()


def averaged(sums: Tensor, counts: Tensor, norms: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    r""":math:`\sum_k \beta^k n(t - k)` and :math:`\sum_k \beta^k` one step on; the average is the first over the second."""
    return decay * sums + norms, decay * counts + 1


@final
class EnCodec(CombiningBalancer):
    r"""Each loss gets a given share of the gradient at the fork, whatever its size: for several losses on one output.

    With :math:`g_i` the gradient of the loss :math:`L_i` at the features, which are the network's output where the fork is
    the last thing in it, the trunk is trained with

    .. math::
        \tilde g = \sum_i R \, \frac{\lambda_i}{\sum_j \lambda_j} \, \frac{g_i}{\langle \lVert g_i \rVert \rangle_\beta}

    where the average :math:`\langle \cdot \rangle_\beta` runs exponentially over the steps, this one included, corrected for
    its start at zero. :math:`\lVert g_i \rVert` is the mean over the batch of the norm of one sample's gradient.

    When to use:
        Several losses on one output (a codec, a generator with a discriminator), each of which shall count as given, whatever
        its scale and however that drifts.

    Args:
        fork: Where the losses part: ``Fork(None, tasks)`` at the output, or any other `Fork`, at whose features it works.
        shares: :math:`\lambda_i` by task name. ``None``: all alike.
        norm: R, the norm of the gradient that goes on for one sample, were all losses to pull in one direction.
        decay: :math:`\beta`, between 0 and 1, of the average.

    Raises:
        TypeError: ``fork`` is not a `Fork`.
        ValueError: A share is missing or not positive, ``norm`` is not positive, or ``decay`` not at least 0 and below 1.

    Shape:
        The features' first dimension is the batch. Every tensor in the log is ``(T,)`` in task order.

    Units:
        :math:`\tilde g` has the unit of ``norm``, whatever the losses'.

    Log:
        ``gradient_norms`` :math:`\lVert g_i \rVert` of this step, ``mean_gradient_norms`` the average that was divided by.

    Differs from the paper:
        The norm per sample, averaged over the batch, is the default of the authors' code. Their code adds 1e-12 to the average
        norm; here a task whose gradients have all been zero is left out instead, so that no result depends on the unit of a
        loss. A task that is absent keeps its average, and the shares of the others are taken among themselves. Where the total
        loss is multiplied before ``backward()``, so is the result; micro-batches are each balanced with the average of the last
        step and their own norms. Over P processes the result is that of one process with the whole batch; theirs, which
        averages the processes' gradients, is P times smaller.

    Example:
        >>> decoder = torch.nn.Linear(2, 4)
        >>> fork = Fork(None, tasks=("waveform", "adversarial"))
        >>> balancer = EnCodec(fork, shares={"waveform": 3.0, "adversarial": 1.0})
        >>> output = decoder(torch.ones(1, 2))
        >>> signal = fork(output)
        >>> output.retain_grad()
        >>> balancer({"waveform": 1e6 * signal["waveform"].sum(), "adversarial": 1e-6 * signal["adversarial"].sum()}).backward()
        >>> output.grad  # 3/4 and 1/4 of the norm 1, in the same direction
        tensor([[0.5000, 0.5000, 0.5000, 0.5000]])

    References:
        Défossez, Copet, Synnaeve, Adi 2022, High fidelity neural audio compression, the part on the balancer, and the authors'
        ``balancer.py`` (equation number not verified).
    """

    norm_sums: Tensor
    norm_counts: Tensor
    shares: Tensor

    def __init__(
        self, fork: Fork, *, shares: Mapping[str, float] | None = None, norm: float = 1.0, decay: float = 0.999
    ) -> None:
        super().__init__(fork, columns=("gradient_norms", "mean_gradient_norms"))
        if not norm > 0:
            raise ValueError(f"norm must be positive; found {norm}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1; found {decay}")
        self._norm, self._decay = norm, decay
        ones = torch.ones_like(self.weights)
        given = ones if shares is None else ones.new_tensor(positive_by_task("shares", shares, self.tasks))
        self.register_buffer("shares", given, persistent=False)
        for name in ("norm_sums", "norm_counts"):
            self.register_buffer(name, torch.zeros_like(ones))

    def _combine(self, arrived: Arrived, rows: list[int]) -> tuple[Sequence[Tensor], Tensor]:
        norms = self._batch_norms(arrived, len(rows))
        sums, counts = averaged(self.norm_sums[rows], self.norm_counts[rows], norms, self._decay)
        scales = encodec_scales(self.shares[rows], sums / counts, self._norm)
        combined = [torch.tensordot(scales.to(g), g, 1) for g in arrived.gradients]
        return combined, torch.stack([norms, sums / counts], 1)

    def _batch_norms(self, arrived: Arrived, tasks: int) -> Tensor:
        """The mean of the samples' norms ``(T,)``, over those on all processes."""
        norms = sample_norms(arrived.gradients) if arrived.gradients else self.weights.new_zeros(tasks, 0)
        total = self._sum(torch.cat([norms.sum(1), norms.new_full((1,), norms.shape[1])]))
        return (total[:-1] / total[-1]).to(self.weights.dtype)

    def _update(self, step: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if step.task_norms is None:
            return {}, {}
        sums, counts = averaged(self.norm_sums, self.norm_counts, step.task_norms, self._decay)
        return {
            "norm_sums": torch.where(step.present, sums, self.norm_sums),
            "norm_counts": torch.where(step.present, counts, self.norm_counts),
        }, {}
