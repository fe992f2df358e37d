"""Methods that draw random numbers."""

from __future__ import annotations

from abc import ABC
from typing import Any

import torch

from equipoise.balancers._balancer import Balancer


class SeededBalancer(Balancer, ABC):
    """A method with a generator of its own, whose state is part of ``state_dict``.

    The generator is on the CPU and starts from a given seed, so that every process draws the same numbers, and nothing else
    that draws random numbers is disturbed or disturbs it.
    """

    _generator: torch.Generator

    def get_extra_state(self) -> dict[str, Any]:
        """The state that is not a buffer, with that of the generator."""
        return {**super().get_extra_state(), "generator": self._generator.get_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore it.

        Raises:
            ValueError: The state belongs to other tasks.
        """
        super().set_extra_state(state)
        self._generator.set_state(state["generator"].cpu())

    def _seed(self, seed: int) -> None:
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise ValueError(f"seed must be an integer; found {seed!r}")
        self._generator = torch.Generator().manual_seed(seed)
