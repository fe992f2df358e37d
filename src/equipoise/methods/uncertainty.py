"""Homoscedastic uncertainty weighting (Kendall, Gal and Cipolla 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple, final

import torch
from torch import Tensor

from equipoise.arguments import ByTask, flag, known_tasks, one_of
from equipoise.balancer import Balancer, Log, Step, Tasks
from equipoise.methods.adam import Moments, adam, check_lr

Kind = Literal["regression", "classification"]
TINY = torch.finfo(torch.float32).tiny


def uncertainty_weights(log_variances: Tensor, halves: Tensor | float) -> Tensor:
    r""":math:`w_i = e^{-s_i} / 2` for a regression, :math:`e^{-s_i}` for a classification, with :math:`s = \log\sigma^2`."""
    return halves * torch.exp(-log_variances)


def uncertainty_gradient(losses: Tensor, log_variances: Tensor, halves: Tensor | float) -> Tensor:
    r"""The derivative of :math:`w_i(s_i) L_i + s_i / 2` by :math:`s_i`."""
    return 0.5 - uncertainty_weights(log_variances, halves) * losses


def resting_log_variances(losses: Tensor, halves: Tensor | float) -> Tensor:
    r"""Where the derivative is zero: :math:`\log L_i` for a regression, :math:`\log 2 L_i` for a classification."""
    return torch.log(2 * halves * losses.clamp(min=TINY))


class State(NamedTuple):
    """The state between two steps, each ``(T,)``.

    Attributes:
        log_variances: :math:`s_i`.
        adam_mean: See `Moments`.
        adam_square: See `Moments`.
        adam_count: See `Moments`; 0 for a task that has not moved yet.
    """

    log_variances: Tensor
    adam_mean: Tensor
    adam_square: Tensor
    adam_count: Tensor


@final
class Uncertainty(Balancer):
    r"""Weights from a learned noise level :math:`\sigma_i` per task.

    Regression (Gaussian likelihood, squared error): :math:`\frac{1}{2\sigma_i^2} L_i + \log\sigma_i`. Classification
    (scaled softmax, cross entropy): :math:`\frac{1}{\sigma_i^2} L_i + \log\sigma_i`.

    The method learns :math:`s_i = \log\sigma_i^2`, by Adam; its gradient is known in closed form, so that no optimiser
    of the caller's has to hold it. At rest, :math:`w_i = 1 / (2 L_i)` for both kinds.

    When to use:
        Likelihoods whose noise differs between tasks. Weights grow as losses fall, so that it raises the effective
        learning rate of a task that is learnt well, and can overfit it. Take ``initial="losses"`` unless the published
        start is wanted: else the weights start at 1/2 or 1 and a step changes a weight by a factor of about ``exp(lr)``
        at most, though the weight at rest, :math:`1 / (2 L_i)`, may be far away. For a loss of 100 it takes log(100) /
        lr steps from 1/2, some 180 at the default; meanwhile the large losses keep the small ones from being learnt,
        which is a plateau.

    Args:
        kinds: ``"regression"`` or ``"classification"``, for each task by name or once for all.
        lr: Adam's learning rate for s.
        initial: ``"losses"``: a task starts where s is at rest for the loss of its first step (of its first step after
            ``start``), at :math:`\log L_i` for a regression and :math:`\log 2 L_i` for a classification, so that this
            very step has the weight :math:`1 / (2 L_i)`. A task whose loss is not positive then starts at 0. ``None``:
            s starts at 0, or where ``initial_weights`` says.
        normalize: Scale the weights so that they sum to T and change no effective learning rate. Not part of the
            method.
        tasks, every, start, accumulate, initial_weights: See `Balancer`.

    Raises:
        TypeError: A setting is of another type.
        ValueError: A task is unknown or missing in ``kinds``, or its kind is neither of the two, and the message names
            it; another setting is out of its range; or ``initial`` and ``initial_weights`` are both given.

    Differs from the paper:
        The total loss leaves out the terms :math:`\log\sigma_i`, which no parameter of the network appears in. The
        learning rate is the one that the GradNorm paper used for this baseline; Kendall et al. train s with the
        network's optimiser. The paper has no start from the losses.

    Example:
        >>> balancer = Uncertainty(("depth", "label"), {"depth": "regression", "label": "classification"})
        >>> balancer.weights
        tensor([0.5000, 1.0000])
        >>> balancer = Uncertainty(("depth", "label"), "regression", initial="losses")
        >>> losses = {"depth": torch.tensor(50.0, requires_grad=True), "label": torch.tensor(0.5, requires_grad=True)}
        >>> balancer(losses).backward()
        >>> balancer.step()
        >>> balancer.log()["weights"]
        tensor([0.0100, 1.0000])

    References:
        Kendall, Gal, Cipolla 2018, Multi-task learning using uncertainty to weigh losses, equations 7 and 10.
    """

    weighs: ClassVar[bool] = True
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
        self._kinds = [
            one_of(f"kinds: task {task!r}", by_task.get(task), ("regression", "classification")) for task in self.tasks
        ]
        self._lr, self._normalize = check_lr(lr), flag("normalize", normalize)
        self._initial = None if initial is None else one_of("initial", initial, ("losses",))
        if initial is not None and initial_weights is not None:
            raise ValueError("initial and initial_weights both say where s starts: give one of them; found both")
        self.reset_parameters()

    def init_state(self, weights: Tensor) -> tuple[Tensor, State]:
        """Start at s = 0, or at the s that gives the weights that the caller has given."""
        given, halves = self._given_weights, self.halves
        log_variances = torch.zeros_like(weights)
        if given is not None:
            weights = weights if isinstance(given, str) or self._normalize else weights.new_tensor(given)
            log_variances = torch.log(halves / weights)
        weights = uncertainty_weights(log_variances, halves)
        return weights / weights.mean() if self._normalize else weights, State(log_variances, *Moments.zeros(weights))

    def weigh(self, step: Step, state: State) -> Tensor:
        """The weights as they are; from the losses at hand for a task that starts from them."""
        return step.weights if self._initial is None else self._weights(self._started(step, state), step)

    def update(self, step: Step, state: State) -> tuple[Tensor, State, Log]:
        """One step of Adam along the derivative by s."""
        log_variances = self._started(step, state)
        gradient = uncertainty_gradient(step.losses, log_variances, self.halves)
        moments = Moments(state.adam_mean, state.adam_square, state.adam_count)
        change, moments = adam(gradient, moments, lr=self._lr)
        log_variances = log_variances + change
        return self._weights(log_variances, step), State(log_variances, *moments), {}

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
        return torch.where(starts, resting_log_variances(step.losses, self.halves), state.log_variances)

    def _weights(self, log_variances: Tensor, step: Step) -> Tensor:
        weights = uncertainty_weights(log_variances, self.halves)
        return step.in_proportion(weights) if self._normalize else weights
