"""Methods whose weights are a function of the losses at hand."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from equipoise.balancers._balancer import Step
from equipoise.balancers._over_processes import over_processes
from equipoise.balancers._positive_losses import PositiveLossBalancer


class CurrentLossBalancer(PositiveLossBalancer, ABC):
    """Weights computed from the positive losses that they then weight.

    Over several processes the weights are those of the mean losses. With several micro-batches to a step, each is weighted
    by its own losses; the log has the mean.
    """

    @abstractmethod
    def _weights_of(self, losses: Tensor, present: Tensor) -> Tensor:
        """The weights for these losses ``(T,)``; the entries of absent tasks mean nothing. Must not write to any buffer."""

    def _weigh(self, losses: Tensor, present: Tensor) -> Tensor:
        if torch.is_grad_enabled():  # in evaluation a process may be alone
            losses, present = over_processes(self._processes, losses, present)
        return torch.where(present, self._weights_of(losses, present), self.weights)

    def _update(self, step: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {"weights": torch.where(step.present, step.weights, self.weights)}, {}
