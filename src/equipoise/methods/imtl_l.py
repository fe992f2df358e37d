"""Impartial multi-task learning, the balance of losses (Liu, Li, Kuang et al. 2021)."""

from __future__ import annotations

from typing import NamedTuple, final

from torch import Tensor

from equipoise.arguments import ByTask
from equipoise.balancer import Balancer, Log, Step, Tasks
from equipoise.methods.adam import Moments, adam, check_lr


def imtl_l_weights(scales: Tensor) -> Tensor:
    r""":math:`w_i = e^{s_i}`."""
    return scales.exp()


def imtl_l_gradient(losses: Tensor, scales: Tensor) -> Tensor:
    r"""The derivative of :math:`e^{s_i} L_i - s_i` by :math:`s_i`."""
    return imtl_l_weights(scales) * losses - 1


class State(NamedTuple):
    """The state between two steps, each ``(T,)``.

    Attributes:
        scales: The logarithms of the weights, s.
        adam_mean: See `Moments`.
        adam_square: See `Moments`.
        adam_count: See `Moments`.
    """

    scales: Tensor
    adam_mean: Tensor
    adam_square: Tensor
    adam_count: Tensor


@final
class IMTLL(Balancer):
    r"""IMTL-L: learned scales that bring every loss to 1, from :math:`\sum_i e^{s_i} L_i - s_i`.

    s is trained by Adam; its gradient is known in closed form, so that no optimiser of the caller's has to hold it. At
    rest, :math:`w_i = e^{s_i} = 1 / L_i`.

    When to use:
        As `SI`, where the weights shall follow slowly, through noise, instead of at once. The weight of a loss that
        stays at zero or below grows without end.

    Args:
        lr: Adam's learning rate for s.
        tasks, every, start, accumulate, initial_weights: See `Balancer`.

    Raises:
        ValueError: ``lr`` is not positive and finite.

    Differs from the paper:
        The total loss leaves out the terms :math:`-s_i`, which no parameter of the network appears in. s has an Adam of
        its own; the paper trains it together with the network. The paper's other half, IMTL-G, balances gradients and
        is another method.

    Example:
        >>> import torch
        >>> balancer = IMTLL(("large", "small"))
        >>> balancer(torch.tensor([20.0, 0.05], requires_grad=True)).backward()
        >>> balancer.step()
        >>> balancer.weights
        tensor([0.9753, 1.0253])

    References:
        Liu, Li, Kuang, Xue, Chen, Yang, Liao, Zhang 2021, Towards impartial multi-task learning, the loss balance
        IMTL-L (equation number not verified).
    """

    scales: Tensor

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
        self._lr = check_lr(lr)
        self.reset_parameters()

    def init_state(self, weights: Tensor) -> tuple[Tensor, State]:
        """The scales of the weights to start from."""
        return weights, State(weights.log(), *Moments.zeros(weights))

    def update(self, step: Step, state: State) -> tuple[Tensor, State, Log]:
        """One step of Adam on s."""
        moments = Moments(state.adam_mean, state.adam_square, state.adam_count)
        change, moments = adam(imtl_l_gradient(step.losses, state.scales), moments, lr=self._lr)
        scales = state.scales + change
        return imtl_l_weights(scales), State(scales, *moments), {}
