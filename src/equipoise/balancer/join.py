"""Uneven numbers of batches over the processes, by PyTorch's `Join`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from equipoise.balancer.state import SavedState

if TYPE_CHECKING:
    from equipoise.balancer.balancer import Balancer


class Joins(SavedState):
    """A balancer under ``torch.distributed.algorithms.Join([model, balancer])``.

    A process that has run out of batches goes on to step the balancer, without losses of its own, as long as another has some.
    """

    _join_config: Any = None

    def join_hook(self, **kwargs: Any) -> Any:
        """Step along with the processes that still have batches."""
        from torch.distributed.algorithms.join import JoinHook

        class Along(JoinHook):
            def __init__(self, balancer: Balancer) -> None:
                self.balancer = balancer

            def main_hook(self) -> None:
                self.balancer.step()

        return Along(self)  # type: ignore[arg-type]

    @property
    def join_device(self) -> torch.device:
        """Where the weights are."""
        return self.weights.device

    @property
    def join_process_group(self) -> Any:
        """The processes that share out every batch."""
        from torch import distributed

        return self.process_group or distributed.group.WORLD
