"""Random loss weighting (Lin, Ye, Zhang and Tsang 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from equipoise.arguments import count
from equipoise.balancer.balancer import Balancer
from equipoise.balancer.rng import generator
from equipoise.balancer.step import Log, Step
from equipoise.engine import GradientSource
from equipoise.methods.static import NoState


def rlw_weights(normal: Tensor) -> Tensor:
    r""":math:`T\,\mathrm{softmax}(z)` of :math:`z \sim \mathcal N(0, I)`."""
    return len(normal) * normal.softmax(0)


@final
class RLW(Balancer):
    r"""Random weights, drawn anew for every step: :math:`w = T\,\mathrm{softmax}(z)`, :math:`z \sim \mathcal N(0, I)`.

    The baseline that a method has to beat. The random numbers follow from ``seed`` and the number of the step: the same on
    every process and after a restart, and untouched by all other draws of random numbers.

    When to use:
        As a control: a method that adapts should beat weights that know nothing.

    Args:
        tasks: The fork (or what `attach` or `PerLoss` give), or the names of the tasks.
        seed: An integer of at least 0 that the random numbers follow from.
        every: Gradient norms are measured for the log at each ``every``-th step; ``None``: never.
        accumulate: Whether a measured step is made of several backward passes (micro-batches).

    Raises:
        TypeError: ``seed`` is not an integer.
        ValueError: ``seed`` is negative.

    Differs from the paper:
        The weights sum to T instead of 1, which keeps the network's effective learning rate that of equal weights. They are
        drawn for all tasks, also where some are absent. The numbers go to the tasks in the alphabetical order of their names,
        so that the order in which they are listed does not matter.

    Example:
        >>> RLW(("price", "risk"), seed=1).weights.sum()
        tensor(2.)

    References:
        Lin, Ye, Zhang, Tsang 2022, Reasonable effectiveness of random weighting: a litmus test for multi-task learning,
        Algorithm 2, with the normal distribution.
    """

    moves_absent: bool = True

    def __init__(
        self,
        tasks: GradientSource | Sequence[str],
        *,
        seed: int = 0,
        every: int | None = None,
        accumulate: bool = False,
    ) -> None:
        super().__init__(tasks, every=every, accumulate=accumulate)
        self._seed = count("seed", seed, least=0)
        self.reset_parameters()

    def init_state(self, weights: Tensor) -> tuple[Tensor, NoState]:
        """The weights of the first step."""
        return self._draw(0, weights), NoState()

    def update(self, step: Step, state: NoState) -> tuple[Tensor, NoState, Log]:
        """The weights of the next step."""
        return self._draw(step.number + 1, step.weights), state, {}

    def _draw(self, number: int, like: Tensor) -> Tensor:
        normal = torch.randn(
            len(self.tasks), generator=generator(self._seed, number), dtype=torch.float64, device="cpu"
        )
        ranks = [sorted(self.tasks).index(task) for task in self.tasks]
        return rlw_weights(normal[ranks]).to(like.dtype).to(like.device, non_blocking=True)
