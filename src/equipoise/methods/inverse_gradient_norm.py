"""The inverse-norm rule of physics-informed networks (Wang, Sankaran, Wang and Perdikaris 2023), elsewhere "grad norm"."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from equipoise.arguments import ByTask, number
from equipoise.balancer import Balancer, Log, NoState, Step
from equipoise.engine import GradientSource


@final
class InverseGradientNorm(Balancer):
    r"""Weights in inverse proportion to the norms of the tasks' gradients: the "grad norm" of physics-informed networks.

    .. math:: \hat\lambda_i = \frac{\mathrm{mean}_j \lVert g_j \rVert}{\lVert g_i \rVert}, \qquad
        w_i \leftarrow a\,w_i + (1 - a)\,\hat\lambda_i

    with :math:`g_i` the gradient of the unweighted loss :math:`L_i` at W. At rest all weighted gradients have the mean
    of the norms; the weights do not sum to T. This is not `GradNorm`, whose weights learn and let slow tasks catch up.

    When to use:
        Terms of a physics-informed network, or other losses, whose gradients differ by orders of magnitude and should
        count alike. For weights that adapt within tens of steps take `GradNormClosedForm` with ``alpha=0``.

    Args:
        fork: A `Fork`, or the result of `attach` or `PerLoss`. The paper's W is all of the network:
            ``PerLoss(network, tasks)``.
        momentum: How much of the weights remains at each update, a, in [0, 1).
        initial_weights: See `Balancer`; ``"balanced"``: where the method is at rest but for a common factor.
        every, start, accumulate: See `Balancer`.

    Raises:
        TypeError, ValueError: ``fork`` is none of these, or a setting is of another type or out of its range.

    Differs from the paper:
        The paper has the sum of the norms in the place of their mean; the authors' code, jaxpi, has the mean, as here.
        As on its main branch (March 2025), nothing is added to a norm (the branches ``pirate`` and ``mixed-precision``
        add 1e-5 of the mean); a task whose gradient is zero keeps its weight, and the mean is that of the others. The
        norms are those of the step's own backward pass; jaxpi takes a pass of its own after the optimiser's step.

    Example:
        >>> from equipoise import Fork
        >>> fork = Fork(torch.nn.Linear(3, 2), tasks=("small", "large"))
        >>> balancer = InverseGradientNorm(fork, momentum=0.0)
        >>> features = fork(torch.ones(1, 3))
        >>> balancer({"small": features["small"].square().sum(), "large": 9 * features["large"].square().sum()}).backward()
        >>> balancer.step()
        >>> balancer.weights
        tensor([5.0000, 0.5556])

    References:
        Wang et al. 2023, An expert's guide to training physics-informed neural networks, equations 2.12 to 2.15.
    """

    needs_norms = True

    def __init__(
        self,
        fork: GradientSource,
        *,
        momentum: float = 0.9,
        initial_weights: ByTask | str | None = None,
        every: int = 1000,
        start: int = 0,
        accumulate: bool = False,
    ) -> None:
        super().__init__(fork, every=every, start=start, accumulate=accumulate, initial_weights=initial_weights)
        self._momentum = number("momentum", momentum, "[0, 1)")
        self.reset_parameters()

    def update(self, step: Step, state: NoState) -> tuple[Tensor, NoState, Log]:
        """The running mean of the weights in inverse proportion to the norms (equations 2.12 to 2.15)."""
        assert step.norms is not None
        known = step.norms > 0
        norms = torch.where(known, step.norms, 1.0)
        found = step.among(known).mean(norms) / norms
        moved = self._momentum * step.weights + (1 - self._momentum) * found
        return torch.where(known, moved, step.weights), state, {}
