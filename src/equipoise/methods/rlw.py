"""Random loss weighting (Lin, Ye, Zhang and Tsang 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from equipoise.balancers._balancer import Step
from equipoise.balancers._seeded import SeededBalancer
from equipoise.balancers._shares import in_proportion, softmax
from equipoise.engine import Source


def rlw_shares(normal: Tensor, present: Tensor) -> Tensor:
    r""":math:`\mathrm{softmax}(z)` of :math:`z \sim \mathcal N(0, I)`, over the tasks present."""
    return softmax(normal, present)


@final
class RLW(SeededBalancer):
    r"""Random weights, drawn anew for every step: :math:`w = T\,\mathrm{softmax}(z)`, :math:`z \sim \mathcal N(0, I)`.

    The baseline that a method has to beat. The random numbers come from a generator of the balancer's own: the same on
    every process, saved in ``state_dict``, and untouched by whatever else draws random numbers.

    When to use:
        As a control: a method that adapts should beat weights that know nothing.

    Args:
        tasks: The fork (or what `attach` or `PerLoss` give), or the names of the tasks.
        seed: Where the generator starts.
        every: Gradient norms are measured for the log at each ``every``-th step; ``None``: never.

    Raises:
        ValueError: ``seed`` is not an integer.

    Differs from the paper:
        The weights sum to T instead of 1, which keeps the network's effective learning rate that of equal weights. A task
        that is absent from a step keeps its weight for the next. The numbers go to the tasks in the alphabetical order of
        their names, so that the order in which they are listed does not matter.

    Example:
        >>> RLW(("price", "risk"), seed=1).weights.sum()
        tensor(2.)

    References:
        Lin, Ye, Zhang, Tsang 2022, Reasonable effectiveness of random weighting: a litmus test for multi-task learning,
        with the normal distribution (equation number not verified).
    """

    def __init__(self, tasks: Source | Sequence[str], *, seed: int = 0, every: int | None = None) -> None:
        super().__init__(tasks, every=every)
        self._seed(seed)
        self._ranks = [sorted(self.tasks).index(task) for task in self.tasks]
        self.weights.copy_(self._draw(torch.ones_like(self.weights, dtype=torch.bool)))

    def _draw(self, present: Tensor) -> Tensor:
        normal = torch.randn(len(self.tasks), generator=self._generator, dtype=torch.float64)[self._ranks]
        normal = normal.to(self.weights.dtype).to(self.weights.device, non_blocking=True)
        return in_proportion(rlw_shares(normal, present), present, self.weights)

    def _update(self, step: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {"weights": self._draw(step.present)}, {}
