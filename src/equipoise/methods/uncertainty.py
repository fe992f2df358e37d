"""Homoscedastic uncertainty weighting (Kendall, Gal and Cipolla 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, final

import torch
from torch import Tensor

from equipoise.balancers._adam import Moments, adam, check_adam
from equipoise.balancers._balancer import Balancer, Step
from equipoise.balancers._given import check_known
from equipoise.engine import Source

Kind = Literal["regression", "classification"]


def uncertainty_weights(log_variances: Tensor, halves: Tensor) -> Tensor:
    r""":math:`w_i = e^{-s_i} / 2` for a regression, :math:`e^{-s_i}` for a classification, with :math:`s = \log\sigma^2`."""
    return halves * torch.exp(-log_variances)


def uncertainty_gradient(losses: Tensor, log_variances: Tensor, halves: Tensor) -> Tensor:
    r"""The derivative of :math:`w_i(s_i) L_i + s_i / 2` by :math:`s_i`."""
    return 0.5 - uncertainty_weights(log_variances, halves) * losses


@final
class Uncertainty(Balancer):
    r"""Weights from a learned noise level :math:`\sigma_i` per task.

    Regression (Gaussian likelihood, squared error): :math:`\frac{1}{2\sigma_i^2} L_i + \log\sigma_i`.
    Classification (scaled softmax, cross entropy): :math:`\frac{1}{\sigma_i^2} L_i + \log\sigma_i`.

    What is learned is :math:`s_i = \log\sigma_i^2`, by Adam; its gradient is known in closed form, so that no optimiser of
    the caller's has to hold it. At rest, :math:`w_i = 1 / (2 L_i)` for both kinds.

    When to use:
        Likelihoods whose noise differs between tasks. Weights grow as losses fall, so that it raises the effective
        learning rate of a task that is learnt well, and can overfit it.

    Args:
        tasks: The fork (or what `attach` or `PerLoss` give), or the names of the tasks.
        kinds: ``"regression"`` or ``"classification"``, for each task by name or once for all.
        lr: Adam's learning rate for s.
        normalize: Scale the weights so that they sum to T and change no effective learning rate. Not part of the method.
        every: Gradient norms are measured for the log at each ``every``-th step; ``None``: never.
        start: The number of steps before the weights begin to move.

    Raises:
        ValueError: A task is unknown or missing in ``kinds``, or its kind is neither of the two; the message names it.

    Differs from the paper:
        The total loss leaves out the terms :math:`\log\sigma_i`, which no parameter of the network appears in. s starts at
        0. The learning rate is the one that the GradNorm paper used for this baseline; Kendall et al. train s with the
        network's optimiser.

    Example:
        >>> Uncertainty(("depth", "label"), {"depth": "regression", "label": "classification"}).weights
        tensor([0.5000, 1.0000])

    References:
        Kendall, Gal, Cipolla 2018, Multi-task learning using uncertainty to weigh losses, equations 7 and 10.
    """

    log_variances: Tensor
    halves: Tensor

    def __init__(
        self,
        tasks: Source | Sequence[str],
        kinds: Mapping[str, Kind] | Kind,
        *,
        lr: float = 0.025,
        normalize: bool = False,
        every: int | None = None,
        start: int = 0,
    ) -> None:
        super().__init__(tasks, every=every, start=start)
        kinds = dict.fromkeys(self.tasks, kinds) if isinstance(kinds, str) else kinds
        self._check_kinds(kinds)
        check_adam(lr)
        self._lr, self._normalize = lr, normalize
        halves = self.weights.new_tensor([0.5 if kinds[task] == "regression" else 1.0 for task in self.tasks])
        self.register_buffer("halves", halves, persistent=False)
        self.register_buffer("log_variances", torch.zeros_like(self.weights))
        Moments.register(self, self.weights)
        self.weights.copy_(self._weights(self.log_variances))

    def _check_kinds(self, kinds: Mapping[str, Kind]) -> None:
        check_known("kinds", kinds, self.tasks)
        for task in self.tasks:
            if kinds.get(task) not in ("regression", "classification"):
                raise ValueError(
                    f"kinds: task {task!r} must be 'regression' or 'classification'; found {kinds.get(task)!r}"
                )

    def _weights(self, log_variances: Tensor) -> Tensor:
        weights = uncertainty_weights(log_variances, self.halves)
        return weights * len(self.tasks) / weights.sum() if self._normalize else weights

    def _update(self, step: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        change, moments = adam(
            uncertainty_gradient(step.losses, self.log_variances, self.halves),
            Moments.of(self),
            step.present,
            lr=self._lr,
        )
        log_variances = self.log_variances + change
        state = {
            "log_variances": log_variances,
            **moments.state(),
            "weights": self._weights(log_variances),
        }
        return state, {}
