"""A balancer as a weighting of PINA's solvers; needs ``equipoise[pina]``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pina.weighting import BaseWeighting
from torch import Tensor

from equipoise.arguments import described
from equipoise.balancer import Balancer
from equipoise.integrations.lightning import BalancerCallback


class BalancedWeighting(BaseWeighting):  # type: ignore[misc]
    """Weighs the losses of a problem's conditions by a balancer, which a `BalancerCallback` of the Trainer steps and saves.

    ``train_loss`` is the weighted sum of the losses; ``val_loss`` and ``test_loss`` are their plain sum, so that one can be
    compared with the next.

    Args:
        balancer: The balancer; its tasks are the names of the conditions.

    Raises:
        TypeError: ``balancer`` is not a `Balancer`.
        RuntimeError: In training, where no ``BalancerCallback(balancer)`` is among the Trainer's callbacks.

    Example:
        >>> import torch
        >>> from equipoise import GradNorm, PerLoss
        >>> from pina.model import FeedForward
        >>> model = FeedForward(input_dimensions=2, output_dimensions=1)
        >>> balancer = GradNorm(PerLoss(model.model[-1], tasks=("residual", "boundary")))
        >>> weighting, callback = BalancedWeighting(balancer), BalancerCallback(balancer)
    """

    def __init__(self, balancer: Balancer) -> None:
        if not isinstance(balancer, Balancer):
            raise TypeError(f"balancer must be a Balancer; found {described(balancer)}")
        super().__init__(aggregator=self._total)
        self.balancer = balancer

    def update_weights(self, losses: Mapping[str, Tensor]) -> dict[str, Any]:
        """The weights by condition, those of this step; 1 outside of training."""
        self._losses = losses if self.solver.training else None
        if self._losses is None:
            return dict.fromkeys(losses, 1.0)
        callbacks = self.solver.trainer.callbacks
        if not any(isinstance(one, BalancerCallback) and one.balancer is self.balancer for one in callbacks):
            raise RuntimeError(
                "Trainer(callbacks=...) must have BalancerCallback(balancer), which steps it; found none"
            )
        return dict(zip(self.balancer.tasks, self.balancer.weights.clone(), strict=True))

    def _total(self, weighted: Tensor) -> Tensor:
        """The sum of the weighted losses, from the losses themselves."""
        losses, self._losses = self._losses, None
        if losses is None:
            return weighted.sum()
        total: Tensor = self.balancer(losses)
        return total
