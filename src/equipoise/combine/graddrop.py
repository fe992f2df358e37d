"""Gradient sign dropout (Chen, Ngiam, Huang, Luong, Kretzschmar, Chai and Anguelov 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from equipoise.balancers._combining import CombiningBalancer
from equipoise.balancers._given import check_known, is_idle
from equipoise.balancers._seeded import SeededBalancer
from equipoise.engine import Arrived, Fork


def positive_sign_purity(signed: Tensor) -> Tensor:
    r""":math:`\mathcal P = \frac12 \left( 1 + \frac{\sum_i G_i}{\sum_i |G_i|} \right)` ; a half where all are zero."""
    size = signed.abs().sum(0)
    return 0.5 * (1 + torch.where(size > 0, signed.sum(0) / size, 0.0))


def sign_masks(signed: Tensor, purity: Tensor, uniform: Tensor) -> Tensor:
    r""":math:`\mathcal M_i = [\mathcal P > U] [G_i > 0] + [\mathcal P < U] [G_i < 0]`, as a bool tensor."""
    return ((purity > uniform) & (signed > 0)) | ((purity < uniform) & (signed < 0))


@final
class GradDrop(CombiningBalancer, SeededBalancer):
    r"""At every feature one sign is drawn, and only the gradients of that sign go on: gradient sign dropout.

    With :math:`g_i` the gradient of the loss :math:`L_i` at the features A of a batch, and :math:`G_i` its sum over the batch
    after it is multiplied with the sign of A,

    .. math::
        \mathcal P = \frac12 \left( 1 + \frac{\sum_i G_i}{\sum_i |G_i|} \right), \qquad
        \mathcal M_i = [\mathcal P > U] [G_i > 0] + [\mathcal P < U] [G_i < 0], \qquad
        \tilde g = \sum_i \left( \ell_i + (1 - \ell_i) \mathcal M_i \right) g_i

    with U drawn uniformly between 0 and 1 for every feature of a sample, and one mask for all samples.

    TorchJD's ``GradDrop``, which `Aggregated` takes, draws for every number that is aggregated, whatever the batch and the
    activations are: the method for gradients at parameters.

    When to use:
        Many tasks that disagree in the sign of their gradients, and some noise in training is welcome.

    Args:
        fork: Where the network splits into tasks: a `Fork`, at whose features it works.
        leaks: :math:`\ell_i` by task name, between 0 and 1: the part of the task's gradient that always goes on. ``None``: 0
            for all.
        seed: Where the generator of U starts. It is the balancer's own: the same on every process, saved in ``state_dict``.

    Raises:
        TypeError: ``fork`` is not a `Fork`.
        ValueError: A leak is missing or not between 0 and 1; ``seed`` is not an integer; or, over several processes, this one
            has no labels for any task.

    Shape:
        The features' first dimension is the batch.

    Log:
        ``gradient_norms``, the norms at the features.

    Differs from the paper:
        The function of the purity that it allows is the identity. The authors' code goes on to scale the result to the norm of
        the plain sum, unless told not to; here it stays as it is. A feature that is zero in the whole batch, or whose gradients
        sum to zero in every task, has no sign: nothing goes on there but the leaks.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> layer = torch.nn.Linear(2, 3)
        >>> fork = Fork(layer, tasks=("up", "down"))
        >>> balancer = GradDrop(fork)
        >>> features = fork(torch.ones(1, 2))
        >>> balancer({"up": features["up"].sum(), "down": -2 * features["down"].sum()}).backward()
        >>> layer.bias.grad  # one sign at each feature, and not their sum, -1
        tensor([-2.,  1., -2.])

    References:
        Chen, Ngiam, Huang, Luong, Kretzschmar, Chai, Anguelov 2020, Just pick a sign: optimizing deep multitask models with
        gradient sign dropout, the positive sign purity and the masks (equation number not verified), and the authors'
        ``graddrop.py``.
    """

    leaks: Tensor

    def __init__(self, fork: Fork, *, leaks: Mapping[str, float] | None = None, seed: int = 0) -> None:
        super().__init__(fork, features=True)
        self._seed(seed)
        given = torch.zeros_like(self.weights)
        if leaks is not None:
            given = given.new_tensor(self._checked(leaks))
        self.register_buffer("leaks", given, persistent=False)

    def forward(
        self, losses: Mapping[str, Tensor | None] | Tensor, shares: Mapping[str, float] | None = None
    ) -> Tensor:
        """The total loss, the plain sum of ``losses``. See `Balancer.forward`."""
        total = super().forward(losses, shares)
        if self._here.meeting.number > 1 and is_idle(losses):
            raise ValueError(
                "GradDrop: over several processes each must have labels for one task at least, as all draw for the same "
                "features; found none here"
            )
        return total

    def _combine(self, arrived: Arrived, rows: list[int]) -> tuple[Sequence[Tensor], Tensor]:
        leaks = self.leaks[rows]
        squares = [g.flatten(1).square().sum(1) for g in arrived.gradients]
        norms = self._sum(torch.stack(squares).sum(0)).sqrt()
        pairs = zip(arrived.gradients, arrived.features, strict=True)
        return [self._dropped(g, feature, leaks.to(g)) for g, feature in pairs], norms[:, None]

    def _dropped(self, gradients: Tensor, feature: Tensor, leaks: Tensor) -> Tensor:
        signed = self._sum((gradients * feature.sign()).sum(1))
        uniform = torch.rand(signed.shape[1:], generator=self._generator, dtype=torch.float64)
        uniform = uniform.to(signed.dtype).to(signed.device, non_blocking=True)
        masks = sign_masks(signed, positive_sign_purity(signed), uniform)
        leaks = leaks.reshape(-1, *[1] * (signed.dim() - 1))
        return ((leaks + (1 - leaks) * masks)[:, None] * gradients).sum(0)

    def _checked(self, leaks: Mapping[str, float]) -> list[float]:
        check_known("leaks", leaks, self.tasks)
        for task in self.tasks:
            if task not in leaks:
                raise ValueError(f"leaks: task {task!r} is missing")
            if not 0 <= leaks[task] <= 1:
                raise ValueError(f"leaks: task {task!r} must have a number between 0 and 1; found {leaks[task]}")
        return [leaks[task] for task in self.tasks]
