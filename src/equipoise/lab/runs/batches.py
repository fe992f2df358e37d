"""Training batches in an order that a seed decides."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from equipoise.lab.problem import Split
from equipoise.lab.runs.evaluation import taken


class Batches:
    """Batches without end: each epoch in an order of its own, without its incomplete last batch.

    Args:
        split: The samples.
        size: Samples in a batch.
        seed: Decides the order.
    """

    def __init__(self, split: Split, size: int, seed: int) -> None:
        self._split, self._size = split, size
        self._generator = torch.Generator().manual_seed(seed)
        self._waiting = torch.empty(0, dtype=torch.long)

    def __next__(self) -> Split:
        """The next batch."""
        if len(self._waiting) < self._size:
            order = torch.randperm(len(self._split), generator=self._generator)
            self._waiting = order.to(self._split.inputs.device)
        rows, self._waiting = self._waiting[: self._size], self._waiting[self._size :]
        return taken(self._split, rows)

    def state_dict(self) -> dict[str, Tensor]:
        """Where the order has got to."""
        return {"generator": self._generator.get_state(), "waiting": self._waiting.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._generator.set_state(state["generator"])
        self._waiting = state["waiting"].to(self._split.inputs.device)
