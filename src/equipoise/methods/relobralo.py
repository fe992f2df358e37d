"""Relative loss balancing with random lookback (Bischof and Kraus 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import final

import torch
from torch import Tensor

from equipoise.balancers._balancer import Step
from equipoise.balancers._current_losses import CurrentLossBalancer
from equipoise.balancers._seeded import SeededBalancer
from equipoise.balancers._shares import in_proportion, softmax
from equipoise.engine import Source


def relative_shares(losses: Tensor, earlier: Tensor, temperature: float, known: Tensor) -> Tensor:
    r""":math:`\mathrm{softmax}_i(L_i(t) / (\tau L_i(t')))`, over the tasks whose earlier loss is known."""
    return softmax(losses / (temperature * earlier), known)


@final
class ReLoBRaLo(SeededBalancer, CurrentLossBalancer):
    r"""Weights from how far each loss has come since the last step, and now and then since the first.

    .. math::
        \lambda_i^{\mathrm{bal}}(t, t') = T\,\mathrm{softmax}_i\!\left(\frac{L_i(t)}{\tau L_i(t')}\right), \qquad
        \lambda^{\mathrm{hist}}(t) = \rho\,w(t - 1) + (1 - \rho)\,\lambda^{\mathrm{bal}}(t, 0)

        w(t) = \alpha\,\lambda^{\mathrm{hist}}(t) + (1 - \alpha)\,\lambda^{\mathrm{bal}}(t, t - 1), \qquad
        \rho \sim \mathrm{Bernoulli}

    with :math:`\sum_i w_i = T`. A task that makes less progress than the others gains weight, whatever the unit of its loss.

    When to use:
        Terms of a physics-informed network, when gradient norms at each step cost too much.

    Args:
        tasks: The fork (or what `attach` or `PerLoss` give), or the names of the tasks.
        alpha: How much of the history remains at each step, in [0, 1].
        rho: The probability that the history is the last weights; else it is a look back to the first losses.
        temperature: :math:`\tau`; the larger, the more equal the weights.
        seed: Where the generator of the random numbers starts. They are the same on every process.
        every: Gradient norms are measured for the log at each ``every``-th step; ``None``: never.
        start: The number of steps before the weights begin to move.

    Raises:
        ValueError: ``alpha`` or ``rho`` does not lie in [0, 1], ``temperature`` is not positive and finite, or ``seed`` no
            integer; or a loss is not positive, and the message names the task. On an accelerator only a task's first loss is
            looked at, and later such a step is skipped and counted.

    Differs from the paper:
        As in the authors' published loss class, the weights are 1 in a task's first step, and in its second
        :math:`\lambda^{\mathrm{bal}}(1, 0)`, without history. No small constant is added to the losses. Of several
        micro-batches to a step, each moves the weights from those of the last step.

    Example:
        >>> ReLoBRaLo(("equation", "boundary")).weights
        tensor([1., 1.])

    References:
        Bischof, Kraus 2021, Multi-objective loss balancing for physics-informed deep learning, the section on ReLoBRaLo
        (equation number not verified).
    """

    last_losses: Tensor
    counts: Tensor
    remembers: Tensor

    def __init__(
        self,
        tasks: Source | Sequence[str],
        *,
        alpha: float = 0.999,
        rho: float = 0.999,
        temperature: float = 0.1,
        seed: int = 0,
        every: int | None = None,
        start: int = 0,
    ) -> None:
        super().__init__(tasks, every=every, start=start)
        for name, value in (("alpha", alpha), ("rho", rho)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1]; found {value}")
        if not (temperature > 0 and isfinite(temperature)):
            raise ValueError(f"temperature must be positive and finite; found {temperature}")
        self._seed(seed)
        self._alpha, self._rho, self._temperature = alpha, rho, temperature
        self.register_buffer("last_losses", torch.ones_like(self.weights))
        self.register_buffer("counts", torch.zeros_like(self.weights, dtype=torch.int64))
        self.register_buffer("remembers", self._draw())

    def _draw(self) -> Tensor:
        remembers = torch.rand((), generator=self._generator, dtype=torch.float64) < self._rho
        return remembers.to(self.weights.device, non_blocking=True)

    def _weights_of(self, losses: Tensor, present: Tensor) -> Tensor:
        known = present & (self.counts > 0)

        def balanced(earlier: Tensor) -> Tensor:
            return in_proportion(relative_shares(losses, earlier, self._temperature, known), known, self.weights)

        history = torch.where(self.remembers, self.weights, balanced(self.initial_losses))
        alpha = torch.where(self.counts > 1, self._alpha, 0.0)
        weights = alpha * history + (1 - alpha) * balanced(self.last_losses)
        return in_proportion(weights, known, self.weights)

    def _update(self, step: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        state, log = super()._update(step)
        state |= {
            "last_losses": torch.where(step.present, step.losses, self.last_losses),
            "counts": self.counts + step.present,
            "remembers": self._draw(),
        }
        return state, log
