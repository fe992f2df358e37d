"""Impartial multi-task learning, the balance of losses (Liu, Li, Kuang et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from equipoise.balancers._adam import Moments, adam, check_adam
from equipoise.balancers._balancer import Balancer, Step
from equipoise.engine import Source


def imtl_l_weights(scales: Tensor) -> Tensor:
    r""":math:`w_i = e^{s_i}`."""
    return scales.exp()


def imtl_l_gradient(losses: Tensor, scales: Tensor) -> Tensor:
    r"""The derivative of :math:`e^{s_i} L_i - s_i` by :math:`s_i`."""
    return imtl_l_weights(scales) * losses - 1


@final
class IMTLL(Balancer):
    r"""IMTL-L: learned scales that bring every loss to 1, from :math:`\sum_i e^{s_i} L_i - s_i`.

    s is trained by Adam; its gradient is known in closed form, so that no optimiser of the caller's has to hold it. At rest,
    :math:`w_i = e^{s_i} = 1 / L_i`.

    When to use:
        As `SI`, where the weights shall follow slowly, through noise, instead of at once.

    Args:
        tasks: The fork (or what `attach` or `PerLoss` give), or the names of the tasks.
        lr: Adam's learning rate for s.
        every: Gradient norms are measured for the log at each ``every``-th step; ``None``: never.
        start: The number of steps before the weights begin to move.

    Raises:
        ValueError: ``lr`` is not positive and finite.

    Differs from the paper:
        The total loss leaves out the terms :math:`-s_i`, which no parameter of the network appears in. s starts at 0 and has
        an Adam of its own; the paper trains it together with the network. The paper's other half, IMTL-G, balances
        gradients and is another method.

    Example:
        >>> IMTLL(("price", "risk")).weights
        tensor([1., 1.])

    References:
        Liu, Li, Kuang, Xue, Chen, Yang, Liao, Zhang 2021, Towards impartial multi-task learning, the loss balance
        IMTL-L (equation number not verified).
    """

    scales: Tensor

    def __init__(
        self, tasks: Source | Sequence[str], *, lr: float = 0.025, every: int | None = None, start: int = 0
    ) -> None:
        super().__init__(tasks, every=every, start=start)
        check_adam(lr)
        self._lr = lr
        self.register_buffer("scales", torch.zeros_like(self.weights))
        Moments.register(self, self.weights)

    def _update(self, step: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        change, moments = adam(
            imtl_l_gradient(step.losses, self.scales),
            Moments.of(self),
            step.present,
            lr=self._lr,
        )
        scales = self.scales + change
        state = {
            "scales": scales,
            **moments.state(),
            "weights": imtl_l_weights(scales),
        }
        return state, {}
