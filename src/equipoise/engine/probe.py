"""A leaf of zeros whose gradient carries numbers out of a backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Probe:
    """A leaf of zeros, no parameter, by which a node of the graph hands numbers to the next step.

    A node that takes ``leaf`` as an input hands out numbers as its gradient. So they add up over backward passes, are
    multiplied with whatever multiplies the total loss, and can be compiled, all as for the gradient of any leaf. The zeros are
    expanded from one number and take no memory. ``on_arrival`` is called after each backward pass that has left numbers here.

    Attributes:
        passes: How many backward passes have left numbers here since the last `clear`.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        on_arrival: Callable[[], None] | None = None,
    ) -> None:
        self.leaf, self.passes = torch.zeros((), dtype=dtype, device=device).expand(shape).requires_grad_(), 0
        self._on_arrival = on_arrival
        self.leaf.register_post_accumulate_grad_hook(self._arrived)

    def _arrived(self, leaf: Tensor) -> None:
        self.passes += 1
        if self._on_arrival is not None:
            self._on_arrival()

    @property
    def numbers(self) -> Tensor | None:
        """The numbers left since the last `clear`; None where there are none."""
        return self.leaf.grad

    def clear(self) -> None:
        """Forget them."""
        self.leaf.grad, self.passes = None, 0
