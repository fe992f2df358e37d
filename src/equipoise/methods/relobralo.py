"""Relative loss balancing with random lookback (Bischof and Kraus 2021)."""

from __future__ import annotations

from typing import NamedTuple, final

import torch
from torch import Tensor

from equipoise.arguments import ByTask, count, number
from equipoise.balancer import Balancer, Log, Step, Tasks
from equipoise.balancer.rng import generator


class State(NamedTuple):
    """Each task's last loss (1 before the first), its number of losses, and whether the next step looks not back ``()``.

    The last is drawn ahead, so that a forward pass that is compiled holds no generator.
    """

    last_losses: Tensor
    counts: Tensor
    remembers: Tensor


@final
class ReLoBRaLo(Balancer):
    r"""Weights from how far each loss has fallen since the last step, and now and then since the first.

    .. math::
        \lambda_i^{\mathrm{bal}}(t, t') = T\,\mathrm{softmax}_i\!\left(\frac{L_i(t)}{\tau L_i(t')}\right), \qquad
        \lambda^{\mathrm{hist}}(t) = \rho\,w(t - 1) + (1 - \rho)\,\lambda^{\mathrm{bal}}(t, 0)

        w(t) = \alpha\,\lambda^{\mathrm{hist}}(t) + (1 - \alpha)\,\lambda^{\mathrm{bal}}(t, t - 1), \qquad
        \rho \sim \mathrm{Bernoulli}

    with :math:`\sum_i w_i = T`. A task that makes less progress than the others gains weight, in any unit of its loss.

    When to use:
        Terms of a physics-informed network, when gradient norms at each step cost too much.

    Args:
        alpha: How much of the history remains at each step, in [0, 1].
        rho: The probability that the history is the last weights; else a look back to the first losses. In [0, 1].
        temperature: :math:`\tau`; the larger, the more equal the weights.
        seed: An integer of at least 0 that the random numbers follow from: the same on every process.
        tasks, every, start, accumulate, initial_weights: See `Balancer`.

    Raises:
        TypeError: A setting is of another type.
        ValueError: A setting is out of its range; or a loss is not positive; see `GLS`.

    Differs from the paper:
        As in the loss class that the first author has published (Improving PINNs through adaptive loss balancing,
        Towards Data Science 2023), the weights are 1 in a task's first step and :math:`\lambda^{\mathrm{bal}}(1, 0)` in
        its second. :math:`L_i(0)` is the loss of the first step; ``train.py`` of the authors' repository takes the
        second's. Of several micro-batches to a step, each moves the weights from those of the last step. The defaults
        are those of the port to PyTorch by Khadrawi; the published class has a ``rho`` of 0.99, ``train.py`` 1, which
        never looks back, and a temperature of 1; the paper's own choice was not verified.

    Example:
        >>> ReLoBRaLo(("equation", "boundary")).weights
        tensor([1., 1.])

    References:
        Bischof, Kraus 2021, Multi-objective loss balancing for physics-informed deep learning (equation not verified).
    """

    state_type = State
    weighs = positive_losses = True

    def __init__(
        self,
        tasks: Tasks,
        *,
        alpha: float = 0.999,
        rho: float = 0.999,
        temperature: float = 0.1,
        seed: int = 0,
        initial_weights: ByTask | str | None = None,
        every: int | None = None,
        start: int = 0,
        accumulate: bool = False,
    ) -> None:
        super().__init__(tasks, every=every, start=start, accumulate=accumulate, initial_weights=initial_weights)
        self._alpha, self._rho = number("alpha", alpha, "[0, 1]"), number("rho", rho, "[0, 1]")
        self._temperature = number("temperature", temperature, "(0, inf)")
        self._seed = count("seed", seed, least=0)
        self.reset_parameters()

    def init_state(self, weights: Tensor) -> tuple[Tensor, State]:
        """No task seen yet."""
        return weights, State(torch.ones_like(weights), torch.zeros_like(weights), self._draw(0, weights))

    def weigh(self, step: Step, state: State) -> Tensor:
        """The weights that the losses at hand have earned; those so far for a task in its first step."""
        known = state.counts > 0
        among = step.among(known)

        def balanced(earlier: Tensor) -> Tensor:
            scores = step.losses / (self._temperature * earlier)
            scores = scores.clamp(max=torch.finfo(scores.dtype).max)  # infinity has no softmax
            return among.in_proportion(among.softmax(scores))

        history = torch.where(state.remembers, step.weights, balanced(step.initial_losses))
        alpha = self._alpha * (state.counts > 1).to(step.weights.dtype)
        weights = alpha * history + (1 - alpha) * balanced(state.last_losses)
        return torch.where(known, among.in_proportion(weights), step.weights)

    def update(self, step: Step, state: State) -> tuple[Tensor, State, Log]:
        """The losses to compare the next ones with."""
        return step.weights, State(step.losses, state.counts + 1, self._draw(step.number + 1, step.weights)), {}

    def _draw(self, step_number: int, like: Tensor) -> Tensor:
        random = generator(self._seed, step_number)
        remembers = torch.rand((), generator=random, dtype=torch.float64, device="cpu") < self._rho
        return remembers.to(like.device, non_blocking=True)
