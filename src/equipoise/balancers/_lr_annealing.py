"""Learning-rate annealing for physics-informed networks (Wang, Teng and Perdikaris 2021)."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from equipoise.balancers._balancer import Balancer, Step
from equipoise.balancers._given import check_source
from equipoise.engine import Source


def annealing_weights(task_gradients: Tensor, residual: int) -> Tensor:
    r""":math:`\hat\lambda_i = \max |g_r| / \overline{|g_i|}` of gradients ``(T, P)``, r the residual (Equation 2.30).

    Not finite where a gradient is zero.
    """
    magnitudes = task_gradients.abs()
    return magnitudes[residual].max() / magnitudes.mean(1)


@final
class LRAnnealing(Balancer):
    r"""Weights that bring the mean gradient of every loss up to the largest entry of the residual's gradient.

    .. math:: \hat\lambda_i = \frac{\max |g_r|}{\overline{|g_i|}}, \qquad
        w_i \leftarrow (1 - \alpha)\,w_i + \alpha\,\hat\lambda_i, \qquad w_r = 1

    with :math:`g_i` the gradient of the unweighted loss :math:`L_i` at W, its entries' magnitudes and their mean over W, and r
    the residual of the differential equation, whose weight stays 1.

    When to use:
        A physics-informed network whose residual dominates the boundary and initial conditions. The weights grow large: a
        maximum is compared with a mean. `InverseGradientNorm` is the same authors' later rule, and compares like with like.

    Args:
        fork: What measures: a `Fork`, or what `attach` or `PerLoss` give; not at the features. The paper's W is all of the
            network: ``PerLoss(network, tasks)``.
        residual: The name of the task whose weight stays 1.
        alpha: How much of a new value is taken in, in (0, 1].
        every: Measured, and the weights moved, at each ``every``-th step; the other steps cost nothing.
        start: The number of steps before the weights begin to move.

    Raises:
        TypeError: ``fork`` is none of these.
        ValueError: ``residual`` is no task, ``fork`` measures at the features, ``alpha`` does not lie in (0, 1], or another
            setting is out of its range.

    Shape:
        The task gradients are ``(T, P)`` with P the numbers in W, everything else is ``(T,)`` in task order.

    Units:
        None: a factor in front of all losses changes no weight. The weights do not sum to T.

    Differs from the paper:
        The preprint and the journal's text have the same moving average; the preprint recommends alpha = 0.9 for it, the
        journal's text 0.1, and the authors' code keeps 0.9 of the old weight: that is 0.1, the default here. Equation 2.30 of
        the journal's text and the authors' code divide by the gradient of the *weighted* loss, which comes to rest at the
        root of the wanted weight; the preprint, and the text's own derivation, by that of the unweighted one, as here. The
        code updates at each tenth step, ``every=10``, takes weight matrices without biases, and the mean of the layers' means;
        here W is what the fork measures, and the mean is that of all its entries. Where the residual is absent, or its
        gradient exactly zero, no weight moves; any other such task keeps its weight.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> from equipoise import Fork
        >>> fork = Fork(torch.nn.Linear(3, 2), tasks=("equation", "boundary"))
        >>> balancer = LRAnnealing(fork, residual="equation", alpha=1.0)
        >>> features = fork(torch.ones(1, 3))
        >>> boundary = 0.01 * features["boundary"].square().sum()
        >>> balancer({"equation": features["equation"].square().sum(), "boundary": boundary}).backward()
        >>> balancer.step()
        >>> bool(balancer.weights[1] > 100)
        True

    References:
        Wang, Teng, Perdikaris 2021, Understanding and mitigating gradient flow pathologies in physics-informed neural
        networks, algorithm 2.1, equations 2.30 and 2.31 (equations 40 and 41 of the preprint), and the authors' code,
        ``Helmholtz/Helmholtz2D_model_tf.py``.
    """

    _wants_gradients = True
    _needs_every_loss = False

    def __init__(self, fork: Source, *, residual: str, alpha: float = 0.1, every: int = 1, start: int = 0) -> None:
        check_source(type(self).__name__, fork)
        super().__init__(fork, every=every, start=start)
        if residual not in self.tasks:
            raise ValueError(
                f"residual must be one of the tasks {', '.join(map(repr, self.tasks))}; found {residual!r}"
            )
        if not fork.parameters_measured:
            raise ValueError(
                "LRAnnealing needs the entries of the gradients at parameters; found a fork that measures at the features"
            )
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha must lie in (0, 1]; found {alpha}")
        self._residual, self._alpha = self.tasks.index(residual), alpha

    def _update(self, step: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if step.task_gradients is None:
            return {}, {}
        found = annealing_weights(step.task_gradients, self._residual)
        moves = step.present & step.present[self._residual] & found.isfinite() & (found > 0)
        moves = moves & (torch.arange(len(self.tasks), device=moves.device) != self._residual)
        moved = (1 - self._alpha) * self.weights + self._alpha * found
        return {"weights": torch.where(moves, moved, self.weights)}, {}
