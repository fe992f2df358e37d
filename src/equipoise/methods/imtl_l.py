"""Impartial multi-task learning, the balance of losses (Liu, Li, Kuang et al. 2021)."""

from __future__ import annotations

from typing import NamedTuple, final

import torch
from torch import Tensor

from equipoise.arguments import ByTask, number
from equipoise.balancer import Balancer, Log, Step, Tasks
from equipoise.methods.adam import adam


class State(NamedTuple):
    """The scales s, which are the logarithms of the weights, and Adam's moments; each ``(T,)``."""

    scales: Tensor
    adam_mean: Tensor
    adam_square: Tensor
    adam_count: Tensor


@final
class IMTLL(Balancer):
    r"""IMTL-L: learned scales that bring every loss to 1, from :math:`\sum_i e^{s_i} L_i - s_i`.

    s is trained by an Adam of its own, with its gradient in closed form. At rest, :math:`w_i = e^{s_i} = 1 / L_i`.

    When to use:
        As `SI`, where the weights should follow noisy losses slowly instead of at once. The weight of a loss that
        stays at zero or below grows without bound.

    Args:
        lr: Adam's learning rate for s.
        initial_weights: The weights of the first step, where s starts at their logarithms; see `Balancer`. ``None``: 1.
        tasks, every, start, accumulate: See `Balancer`.

    Raises:
        ValueError: ``lr`` is not positive and finite.

    Differs from the paper:
        The total loss leaves out the terms :math:`-s_i`, which no parameter of the network appears in. The paper trains
        s together with the network. Its other half, IMTL-G, balances gradients and is another method.

    Example:
        >>> balancer = IMTLL(("large", "small"))
        >>> balancer(torch.tensor([20.0, 0.05], requires_grad=True)).backward()
        >>> balancer.step()
        >>> balancer.weights
        tensor([0.9753, 1.0253])

    References:
        Liu et al. 2021, Towards impartial multi-task learning, IMTL-L (equation number not verified).
    """

    state_type = State

    def __init__(
        self,
        tasks: Tasks,
        *,
        lr: float = 0.025,
        every: int | None = None,
        start: int = 0,
        accumulate: bool = False,
        initial_weights: ByTask | str | None = None,
    ) -> None:
        super().__init__(tasks, every=every, start=start, accumulate=accumulate, initial_weights=initial_weights)
        self._lr = number("lr", lr, "(0, inf)")
        self.reset_parameters()

    def init_state(self, weights: Tensor) -> tuple[Tensor, State]:
        """The scales of the weights to start from."""
        return weights, State(weights.log(), *[torch.zeros_like(weights)] * 3)

    def update(self, step: Step, state: State) -> tuple[Tensor, State, Log]:
        r"""One step of Adam along the derivative of :math:`e^{s_i} L_i - s_i` by :math:`s_i`."""
        change, state = adam(state.scales.exp() * step.losses - 1, state, lr=self._lr)
        scales = state.scales + change
        return scales.exp(), state._replace(scales=scales), {}
