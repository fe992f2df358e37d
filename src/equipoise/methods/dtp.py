"""Dynamic task prioritization (Guo, Haque, Huang, Yeung and Fei-Fei 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import final

import torch
from torch import Tensor

from equipoise.balancers._balancer import Balancer, Step
from equipoise.balancers._given import check_known
from equipoise.balancers._over_processes import over_processes
from equipoise.engine import Source


def dtp_weights(indicators: Tensor, gamma: float) -> Tensor:
    r"""The focal loss of the indicators, :math:`w_i = -(1 - \bar\kappa_i)^\gamma \log \bar\kappa_i`."""
    return -((1 - indicators) ** gamma) * indicators.log()


@final
class DTP(Balancer):
    r"""Weights from how well the tasks do by a measure of their own, such as accuracy: the worst comes first.

    .. math:: w_i = -(1 - \bar\kappa_i)^\gamma \log \bar\kappa_i, \qquad
        \bar\kappa_i \leftarrow \alpha\,\kappa_i + (1 - \alpha)\,\bar\kappa_i

    with a performance indicator :math:`\kappa_i` in [0, 1], larger for better, that `observe` takes. Until a task's first
    indicator it has the weight 1.

    When to use:
        Every task has a measure of success in [0, 1], and the worst shall be trained most, whatever its loss says.

    Args:
        tasks: The fork (or what `attach` or `PerLoss` give), or the names of the tasks.
        alpha: How much a new indicator says, in (0, 1].
        gamma: How much the tasks that do well are set back.
        floor: :math:`\bar\kappa_i` counts as no less than this and no more than 1 minus this.
        every: Gradient norms are measured for the log at each ``every``-th step; ``None``: never.
        start: The number of steps before the weights begin to move.

    Raises:
        ValueError: ``alpha`` does not lie in (0, 1], ``gamma`` is negative or not finite, or ``floor`` does not lie between 0
            and 0.5.

    Differs from the paper:
        The floor: the paper's weight is infinite for a task that does nothing right, as at the start of training, and zero
        for one that does everything right. The running indicator starts at the first one. One gamma for all tasks; the
        paper lets every task have its own, and uses a focal loss within the tasks as well. The defaults of alpha and gamma
        are no recommendation.

    Example:
        >>> balancer = DTP(("pose", "detection"), gamma=1.0)
        >>> balancer.observe({"pose": 0.2, "detection": 0.8})
        >>> balancer.weights
        tensor([1.2876, 0.0446])

    References:
        Guo, Haque, Huang, Yeung, Fei-Fei 2018, Dynamic task prioritization for multitask learning, the task-level
        prioritization (equation number not verified).
    """

    indicators: Tensor
    counts: Tensor

    def __init__(
        self,
        tasks: Source | Sequence[str],
        *,
        alpha: float = 0.5,
        gamma: float = 2.0,
        floor: float = 1e-3,
        every: int | None = None,
        start: int = 0,
    ) -> None:
        super().__init__(tasks, every=every, start=start)
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha must lie in (0, 1]; found {alpha}")
        if not (gamma >= 0 and isfinite(gamma)):
            raise ValueError(f"gamma must be at least 0 and finite; found {gamma}")
        if not 0 < floor < 0.5:
            raise ValueError(f"floor must lie between 0 and 0.5; found {floor}")
        self._alpha, self._gamma, self._floor = alpha, gamma, floor
        self.register_buffer("indicators", torch.zeros_like(self.weights))
        self.register_buffer("counts", torch.zeros_like(self.weights, dtype=torch.int64))

    @torch.no_grad()
    def observe(self, indicators: Mapping[str, float | Tensor | None]) -> None:
        """Hand in the tasks' performance, of a batch or of a validation set, and move the weights.

        Over several processes, every process must call it; their indicators are averaged. While the balancer is frozen,
        nothing is taken in.

        Args:
            indicators: A number in [0, 1] for every task by name, ``None`` where there is none: that task keeps its weight.

        Raises:
            ValueError: A task is unknown or missing, or a number does not lie in [0, 1]; the message names the task.
        """
        check_known("indicators", indicators, self.tasks)
        numbers = [self._number(task, indicators) for task in self.tasks]
        present = self.weights.new_tensor([number is not None for number in numbers]) != 0
        values, present = over_processes(
            self._processes, self.weights.new_tensor([number or 0.0 for number in numbers]), present
        )
        if not self._moves:
            return
        alpha = torch.where(self.counts > 0, self._alpha, 1.0)
        self.indicators.copy_(torch.where(present, alpha * values + (1 - alpha) * self.indicators, self.indicators))
        self.counts += present
        bounded = self.indicators.clamp(self._floor, 1 - self._floor)
        self.weights.copy_(torch.where(present, dtp_weights(bounded, self._gamma), self.weights))

    def _number(self, task: str, indicators: Mapping[str, float | Tensor | None]) -> float | None:
        if task not in indicators:
            raise ValueError(f"indicators: task {task!r} is missing; hand in None where there is no indicator")
        indicator = indicators[task]
        if indicator is None:
            return None
        if not 0 <= float(indicator) <= 1:
            raise ValueError(f"indicators: task {task!r} must have a number in [0, 1]; found {float(indicator)}")
        return float(indicator)

    def _update(self, step: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {}, {}
