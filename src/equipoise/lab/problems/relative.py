"""The metric of regressions that differ in scale."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchmetrics import MeanSquaredError


class RelativeMeanSquaredError(MeanSquaredError):
    """Mean squared error over the square of the task's scale: 1 is the size of the targets themselves.

    Args:
        sigma: The task's scale.
    """

    def __init__(self, sigma: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sigma = sigma

    def compute(self) -> Tensor:
        """The mean over samples and outputs, without unit."""
        return super().compute() / self.sigma**2
