"""Dynamic task prioritization (Guo, Haque, Huang, Yeung and Fei-Fei 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, final

import torch
from torch import Tensor

from equipoise.arguments import number, observed_by_task
from equipoise.balancer import Balancer, Log, Step, Tasks


class State(NamedTuple):
    """The running mean of the indicators handed to `DTP.observe` ``(T,)``; -1 for a task without an indicator yet."""

    indicators: Tensor


@final
class DTP(Balancer):
    r"""Weights from a measure of how well each task does, such as accuracy: the worst task weighs most.

    .. math:: w_i = -(1 - \bar\kappa_i)^\gamma \log \bar\kappa_i, \qquad
        \bar\kappa_i \leftarrow \alpha\,\kappa_i + (1 - \alpha)\,\bar\kappa_i

    with a performance indicator :math:`\kappa_i` in [0, 1], larger for better, that `observe` takes. Until a task's
    first indicator it has the weight 1.

    When to use:
        Every task has a measure of success in [0, 1], and the worst should be trained most, whatever its loss.

    Args:
        alpha: How much a new indicator says, in (0, 1].
        gamma: How much the tasks that do well are set back.
        floor: :math:`\bar\kappa_i` counts as no less than this, between 0 and 0.5, and no more than 1 minus this.
        tasks, every, start, accumulate: See `Balancer`.

    Raises:
        TypeError, ValueError: A setting is of another type or out of its range.

    Differs from the paper:
        The floor: the paper's weight is infinite for a task that does nothing right. The running indicator starts at
        the first one. One gamma for all tasks; the paper has one per task, and a focal loss within the tasks as well.
        The defaults are no recommendation.

    Example:
        >>> balancer = DTP(("pose", "detection"), gamma=1.0)
        >>> balancer.observe({"pose": 0.2, "detection": 0.8})
        >>> balancer.weights
        tensor([1.2876, 0.0446])

    References:
        Guo et al. 2018, Dynamic task prioritization for multitask learning (equation number not verified).
    """

    state_type = State
    indicators: Tensor

    def __init__(
        self,
        tasks: Tasks,
        *,
        alpha: float = 0.5,
        gamma: float = 2.0,
        floor: float = 1e-3,
        every: int | None = None,
        start: int = 0,
        accumulate: bool = False,
    ) -> None:
        super().__init__(tasks, every=every, start=start, accumulate=accumulate)
        self._alpha, self._gamma = number("alpha", alpha, "(0, 1]"), number("gamma", gamma, "[0, inf)")
        self._floor = number("floor", floor, "(0, 0.5)")
        self.reset_parameters()

    @torch.no_grad()
    def observe(self, indicators: Mapping[str, float | Tensor | None]) -> None:
        """Hand in the tasks' performance, of a batch or of a validation set, and move the weights.

        Between ``backward()`` and `step`, it is that step that moves them. Over several processes, every process must
        call it; their indicators are averaged. While the balancer is frozen, nothing is taken in.

        Args:
            indicators: A number in [0, 1] for every task by name; ``None``: the task keeps its weight.

        Raises:
            TypeError, ValueError: A task is unknown or missing, or an indicator is no number in [0, 1].
        """
        given = observed_by_task("observe: indicators", indicators, self.tasks, "[0, 1]")
        here = torch.tensor([value is not None for value in given], device=self.weights.device)
        new, here = self._processes.mean_where(self.weights.new_tensor([value or 0.0 for value in given]), here)
        if self._frozen:
            return
        running = torch.where(self.indicators < 0, new, self.indicators.lerp(new, self._alpha))
        self.indicators.copy_(torch.where(here, running, self.indicators))
        if self._plan.move and not self._now.passes:  # the weights of a step under way move in `step`
            self.weights.copy_(self._weights(self.indicators, self.weights))

    def init_state(self, weights: Tensor) -> tuple[Tensor, State]:
        """No indicator yet."""
        return weights, State(torch.full_like(weights, -1.0))

    def update(self, step: Step, state: State) -> tuple[Tensor, State, Log]:
        """The weights of the indicators; moved already, where `observe` was called between two steps."""
        return self._weights(state.indicators, step.weights), state, {}

    def _weights(self, indicators: Tensor, weights: Tensor) -> Tensor:
        bounded = indicators.clamp(self._floor, 1 - self._floor)
        return torch.where(indicators < 0, weights, -((1 - bounded) ** self._gamma) * bounded.log())
