"""Gradient sign dropout (Chen, Ngiam, Huang, Luong, Kretzschmar, Chai and Anguelov 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from equipoise.arguments import ByTask, count, numbers_by_task
from equipoise.combine.combination import FeatureGradients
from equipoise.combine.combining import CombiningBalancer
from equipoise.engine import Fork


def positive_sign_purity(signed: Tensor) -> Tensor:
    r""":math:`\mathcal P = \frac12 \left( 1 + \frac{\sum_i G_i}{\sum_i |G_i|} \right)` ; a half where all are zero."""
    size = signed.abs().sum(0)
    return 0.5 * (1 + torch.where(size > 0, signed.sum(0) / size, 0.0))


def sign_masks(signed: Tensor, purity: Tensor, uniform: Tensor) -> Tensor:
    r""":math:`\mathcal M_i = [\mathcal P > U] [G_i > 0] + [\mathcal P < U] [G_i < 0]`, as a bool tensor."""
    return ((purity > uniform) & (signed > 0)) | ((purity < uniform) & (signed < 0))


@final
class GradDrop(CombiningBalancer):
    r"""Gradient sign dropout: at every feature one sign is drawn, and only gradients of that sign pass.

    With :math:`g_i` the gradient of the loss :math:`L_i` at the features A of a batch (their first dimension), and
    :math:`G_i` its sum over the batch after it is multiplied with the sign of A,

    .. math::
        \mathcal P = \frac12 \left( 1 + \frac{\sum_i G_i}{\sum_i |G_i|} \right), \qquad
        \mathcal M_i = [\mathcal P > U] [G_i > 0] + [\mathcal P < U] [G_i < 0], \qquad
        \tilde g = \sum_i \left( \ell_i + (1 - \ell_i) \mathcal M_i \right) g_i

    with U drawn uniformly between 0 and 1 for every feature of a sample, and one mask for all samples. TorchJD's
    ``GradDrop``, which `Aggregated` takes, draws for every number that is aggregated: for gradients at parameters.

    When to use:
        Many tasks whose gradients disagree in sign, where some noise in training is welcome.

    Args:
        fork: Where the network splits into tasks: a `Fork`, at whose features it works.
        leaks: :math:`\ell_i` by task name, between 0 and 1: the part of the gradient that always goes on. ``None``: 0.
        seed: U follows from it and from the number of the step: the same on every process.

    Raises:
        TypeError, ValueError: An argument is of another type or out of its range; or, in the backward pass over several
            processes, this one has no labels for any task.

    Differs from the paper:
        The function of the purity that it allows is the identity. The authors' code goes on to scale the result to the
        norm of the plain sum, unless told not to. A feature that is zero, as half of them behind a ReLU, has no sign:
        its sample adds nothing to :math:`G_i`, but the mask holds for it too. Where :math:`G_i` is zero for every task,
        nothing goes on but the leaks. Fork ahead of the ReLU to avoid that.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> layer = torch.nn.Linear(2, 3)
        >>> fork = Fork(layer, tasks=("up", "down"))
        >>> balancer = GradDrop(fork)
        >>> features = fork(torch.ones(1, 2))
        >>> balancer({"up": features["up"].sum(), "down": -2 * features["down"].sum()}).backward()
        >>> layer.bias.grad  # one sign at each feature, and not their sum, -1
        tensor([ 1., -2.,  1.])

    References:
        Chen, Ngiam, Huang, Luong, Kretzschmar, Chai, Anguelov 2020, Just pick a sign: optimizing deep multitask models
        with gradient sign dropout, Eq. 1 and Algorithm 1 lines 10-15, and the authors' ``graddrop.py``.
    """

    def __init__(self, fork: Fork, *, leaks: ByTask | None = None, seed: int = 0) -> None:
        super().__init__(fork)
        self._leaks = None if leaks is None else numbers_by_task("leaks", leaks, self.tasks, "[0, 1]")
        self._seed = count("seed", seed, least=0)
        self.reset_parameters()

    def combine(self, arrived: FeatureGradients, rows: list[int]) -> tuple[Sequence[Tensor], Tensor]:
        """Let one sign through at every feature."""
        if not arrived.gradients:
            raise ValueError(
                "GradDrop: over several processes each must have labels for one task at least, as all draw for the same "
                "features; found none here"
            )
        squares = [g.flatten(1).square().sum(1) for g in arrived.gradients]
        norms = self._combination.collective.sum(torch.stack(squares).sum(0)).sqrt()
        generator = self._generator(self._seed)
        leaks = torch.tensor([0.0 if self._leaks is None else self._leaks[i] for i in rows], dtype=norms.dtype)
        leaks = leaks.to(norms.device, non_blocking=True)
        pairs = zip(arrived.gradients, arrived.features, strict=True)
        return [self._dropped(g, feature, leaks.to(g), generator) for g, feature in pairs], norms[:, None]

    def _dropped(self, gradients: Tensor, feature: Tensor, leaks: Tensor, generator: torch.Generator) -> Tensor:
        signed = self._combination.collective.sum((gradients * feature.sign()).sum(1))
        uniform = torch.rand(signed.shape[1:], generator=generator, dtype=torch.float64)
        uniform = uniform.to(signed.dtype).to(signed.device, non_blocking=True)
        masks = sign_masks(signed, positive_sign_purity(signed), uniform)
        leaks = leaks.reshape(-1, *[1] * (signed.dim() - 1))
        return ((leaks + (1 - leaks) * masks)[:, None] * gradients).sum(0)
