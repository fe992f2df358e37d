"""Random loss weighting (Lin, Ye, Zhang and Tsang 2022)."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from equipoise.arguments import count
from equipoise.balancer import Balancer, Log, NoState, Step, Tasks
from equipoise.balancer.rng import generator


@final
class RLW(Balancer):
    r"""Random weights, drawn anew for every step: :math:`w = T\,\mathrm{softmax}(z)`, :math:`z \sim \mathcal N(0, I)`.

    The random numbers follow from ``seed`` and the number of the step: the same on every process and after a restart,
    and untouched by all other draws of random numbers.

    When to use:
        As a control: a method that adapts should beat random weights.

    Args:
        seed: An integer of at least 0 that the random numbers follow from.
        tasks, every, accumulate: See `Balancer`.

    Raises:
        TypeError, ValueError: ``seed`` is not an integer, or is negative.

    Differs from the paper:
        The weights sum to T instead of 1. They are drawn
        for absent tasks too, and go to the tasks in the alphabetical order of their names.

    Example:
        >>> RLW(("price", "risk"), seed=1).weights.sum()
        tensor(2.)

    References:
        Lin et al. 2022, Reasonable effectiveness of random weighting: a litmus test for multi-task learning, algorithm
        2.
    """

    moves_absent: bool = True

    def __init__(self, tasks: Tasks, *, seed: int = 0, every: int | None = None, accumulate: bool = False) -> None:
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
        random = generator(self._seed, number)
        normal = torch.randn(len(self.tasks), generator=random, dtype=torch.float64, device="cpu")
        ranks = [sorted(self.tasks).index(task) for task in self.tasks]
        weights = len(ranks) * normal[ranks].softmax(0)
        return weights.to(like.dtype).to(like.device, non_blocking=True)
