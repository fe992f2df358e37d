"""Homoscedastic uncertainty weighting (Kendall, Gal and Cipolla 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor

from equipoise.arguments import SMALLEST, ByTask, flag, known_tasks, number, one_of
from equipoise.balancer import Balancer, Log, Step, Tasks
from equipoise.methods.adam import adam

Kind = Literal["regression", "classification"]


def uncertainty_weights(log_variances: Tensor, halves: Tensor | float) -> Tensor:
    r""":math:`w_i = e^{-s_i} / 2` for a regression, :math:`e^{-s_i}` for a classification, with :math:`s = \log\sigma^2`."""
    return halves * torch.exp(-log_variances)


class State(NamedTuple):
    """:math:`s_i` and Adam's moments, each ``(T,)``; the count is 0 for a task that has not moved yet."""

    log_variances: Tensor
    adam_mean: Tensor
    adam_square: Tensor
    adam_count: Tensor


@final
class Uncertainty(Balancer):
    r"""Weights from a learned noise level :math:`\sigma_i` per task.

    Regression (Gaussian likelihood, squared error): :math:`\frac{1}{2\sigma_i^2} L_i + \log\sigma_i`. Classification
    (scaled softmax, cross entropy): :math:`\frac{1}{\sigma_i^2} L_i + \log\sigma_i`.

    The method learns :math:`s_i = \log\sigma_i^2`, by an Adam of its own, with its gradient in closed form. At rest,
    :math:`w_i = 1 / (2 L_i)` for both kinds.

    When to use:
        Likelihoods whose noise differs between tasks. Weights grow as losses fall, so that a task that is learnt well
        has a higher effective learning rate, and can be overfitted. Take ``initial="losses"`` unless the published
        start is wanted: else a step changes a weight, 1/2 or 1 at the start, by a factor of at most about ``exp(lr)``,
        and a loss of 100 takes log(100) / lr steps to its weight at rest, some 180 at the default: a plateau.

    Args:
        kinds: ``"regression"`` or ``"classification"``, for each task by name or once for all.
        lr: Adam's learning rate for s.
        initial: ``"losses"``: a task starts where s is at rest for the loss of its first step (after ``start``), which
            has the weight :math:`1 / (2 L_i)`; at 0 where that loss is not positive. ``None``: s starts at 0.
        initial_weights: See `Balancer`; those by name are not scaled, unless ``normalize``.
        normalize: Scale the weights so that they sum to T. Not part of the method.
        tasks, every, start, accumulate: See `Balancer`.

    Raises:
        TypeError, ValueError: A setting is of another type or out of its range, a task is unknown or missing in
            ``kinds``, or ``initial`` and ``initial_weights`` are both given.

    Differs from the paper:
        The total loss leaves out the terms :math:`\log\sigma_i`, which no parameter of the network appears in. The
        learning rate is that of this baseline in the GradNorm paper; Kendall et al. train s with the network's
        optimiser. The paper has no start from the losses.

    Example:
        >>> Uncertainty(("depth", "label"), {"depth": "regression", "label": "classification"}).weights
        tensor([0.5000, 1.0000])
        >>> balancer = Uncertainty(("depth", "label"), "regression", initial="losses")
        >>> balancer(torch.tensor([50.0, 0.5], requires_grad=True)).backward()
        >>> balancer.step()
        >>> balancer.log()["weights"]
        tensor([0.0100, 1.0000])

    References:
        Kendall, Gal, Cipolla 2018, Multi-task learning using uncertainty to weigh losses, equations 7 and 10.
    """

    state_type = State
    weighs = True
    log_variances: Tensor

    def __init__(
        self,
        tasks: Tasks,
        kinds: Mapping[str, Kind] | Kind,
        *,
        lr: float = 0.025,
        initial: Literal["losses"] | None = None,
        initial_weights: ByTask | str | None = None,
        normalize: bool = False,
        every: int | None = None,
        start: int = 0,
        accumulate: bool = False,
    ) -> None:
        super().__init__(tasks, every=every, start=start, accumulate=accumulate, initial_weights=initial_weights)
        by_task = dict.fromkeys(self.tasks, kinds) if isinstance(kinds, str) else kinds
        known_tasks("kinds", by_task, self.tasks)
        choices = ("regression", "classification")
        self._kinds = [one_of(f"kinds: task {task!r}", by_task.get(task), choices) for task in self.tasks]
        self._lr, self._normalize = number("lr", lr, "(0, inf)"), flag("normalize", normalize)
        self._initial = None if initial is None else one_of("initial", initial, ("losses",))
        if initial is not None and initial_weights is not None:
            raise ValueError("initial and initial_weights both say where s starts: give one of them; found both")
        self.reset_parameters()

    def init_state(self, weights: Tensor) -> tuple[Tensor, State]:
        """Start at s = 0, or at the s that gives the weights that the caller has given."""
        given, halves, zeros = self._given_weights, self.halves, torch.zeros_like(weights)
        log_variances = zeros
        if given is not None:
            weights = weights if isinstance(given, str) or self._normalize else weights.new_tensor(given)
            log_variances = torch.log(halves / weights)
        weights = uncertainty_weights(log_variances, halves)
        return weights / weights.mean() if self._normalize else weights, State(log_variances, zeros, zeros, zeros)

    def weigh(self, step: Step, state: State) -> Tensor:
        """The weights as they are; from the losses at hand for a task that starts from them."""
        return step.weights if self._initial is None else self._weights(self._started(step, state), step)

    def update(self, step: Step, state: State) -> tuple[Tensor, State, Log]:
        r"""One step of Adam along the derivative of :math:`w_i(s_i) L_i + s_i / 2` by :math:`s_i`."""
        log_variances = self._started(step, state)
        gradient = 0.5 - uncertainty_weights(log_variances, self.halves) * step.losses
        change, state = adam(gradient, state, lr=self._lr)
        log_variances = log_variances + change
        return self._weights(log_variances, step), state._replace(log_variances=log_variances), {}

    @property
    def halves(self) -> Tensor | float:
        """1/2 for a regression, 1 for a classification: ``(T,)``, or one number where all tasks are of one kind."""
        halves = [0.5 if kind == "regression" else 1.0 for kind in self._kinds]
        if len(set(halves)) == 1:
            return halves[0]
        return torch.tensor(halves, dtype=self.weights.dtype).to(self.weights.device, non_blocking=True)

    def _started(self, step: Step, state: State) -> Tensor:
        """The s of this step, before it moves."""
        if self._initial is None:
            return state.log_variances
        starts = (state.adam_count == 0) & (step.losses > 0)
        at_rest = torch.log(2 * self.halves * step.losses.clamp(min=SMALLEST))  # where the derivative is zero
        return torch.where(starts, at_rest, state.log_variances)

    def _weights(self, log_variances: Tensor, step: Step) -> Tensor:
        weights = uncertainty_weights(log_variances, self.halves)
        return step.in_proportion(weights) if self._normalize else weights
