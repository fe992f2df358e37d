"""The inverse-norm rule of physics-informed networks (Wang, Sankaran, Wang and Perdikaris 2023), elsewhere "grad norm"."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from equipoise.balancers._balancer import Balancer, Step
from equipoise.balancers._given import check_source
from equipoise.balancers._present import mean_over
from equipoise.engine import Source


def inverse_norm_weights(task_norms: Tensor, present: Tensor) -> Tensor:
    r""":math:`\hat\lambda_i = \mathrm{mean}_j \lVert g_j \rVert / \lVert g_i \rVert`, the mean over the tasks present.

    Equations 2.12 to 2.14, with the mean in the place of the sum. Not finite where a norm is zero.
    """
    return mean_over(task_norms, present) / task_norms


@final
class InverseGradientNorm(Balancer):
    r"""Weights in inverse proportion to the norms of the tasks' gradients: the "grad norm" of physics-informed networks.

    .. math:: \hat\lambda_i = \frac{\mathrm{mean}_j \lVert g_j \rVert}{\lVert g_i \rVert}, \qquad
        w_i \leftarrow a\,w_i + (1 - a)\,\hat\lambda_i

    with :math:`g_i` the gradient of the unweighted loss :math:`L_i` at W. At rest all weighted gradients have the mean of the
    norms. This is not `GradNorm`, whose weights learn and let slow tasks catch up.

    When to use:
        Terms of a physics-informed network, or other losses, whose gradients differ by orders of magnitude and shall count
        alike. For weights that follow within tens of steps take `GradNormClosedForm` with ``alpha=0``.

    Args:
        fork: What measures: a `Fork`, or what `attach` or `PerLoss` give. The paper's W is all of the network:
            ``PerLoss(network, tasks)``.
        momentum: How much of the weights remains at each update, a, in [0, 1).
        every: Measured, and the weights moved, at each ``every``-th step; the other steps cost nothing.
        start: The number of steps before the weights begin to move.

    Raises:
        TypeError: ``fork`` is none of these.
        ValueError: ``momentum`` does not lie in [0, 1), or another setting is out of its range.

    Shape:
        Every tensor is ``(T,)`` in task order.

    Units:
        None: a factor in front of all losses changes no weight. The weights do not sum to T; the sum of the weighted norms
        is at rest what it is with weights of 1.

    Differs from the paper:
        The paper has the sum of the norms in the place of their mean, which makes all weights T times larger; the authors'
        code has the mean, as here, so that weights of 1 are a start that fits. The code adds a hundred-thousandth of the mean
        to each norm, which bounds the weights; here nothing is added, and a task whose gradient is exactly zero is left out
        of the update like an absent one. Absent tasks keep their weight, and the mean is that of the others. W is what the
        fork measures.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> from equipoise import Fork
        >>> fork = Fork(torch.nn.Linear(3, 2), tasks=("small", "large"))
        >>> balancer = InverseGradientNorm(fork, momentum=0.0)
        >>> features = fork(torch.ones(1, 3))
        >>> balancer({"small": features["small"].square().sum(), "large": 9 * features["large"].square().sum()}).backward()
        >>> balancer.step()
        >>> balancer.weights
        tensor([5.0000, 0.5556])

    References:
        Wang, Sankaran, Wang, Perdikaris 2023, An expert's guide to training physics-informed neural networks, equations 2.12
        to 2.15, and the authors' code, ``jaxpi/models.py``.
    """

    _needs_every_loss = False

    def __init__(self, fork: Source, *, momentum: float = 0.9, every: int = 1000, start: int = 0) -> None:
        check_source(type(self).__name__, fork)
        super().__init__(fork, every=every, start=start)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1); found {momentum}")
        self._momentum = momentum

    def _update(self, step: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if step.task_norms is None:
            return {}, {}
        found = inverse_norm_weights(step.task_norms, step.present)
        moved = self._momentum * self.weights + (1 - self._momentum) * found
        return {"weights": torch.where(step.present & (step.task_norms > 0), moved, self.weights)}, {}
