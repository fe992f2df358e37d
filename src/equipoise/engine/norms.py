"""Squared norms that neither overflow nor vanish."""

from __future__ import annotations

import torch
from torch import Tensor


def squared_norm(gradient: Tensor) -> Tensor:
    """The squared norm, in a precision in which that of scaled half-precision gradients does not overflow."""
    wide = None if gradient.dtype not in _HALF else torch.float32
    norm: Tensor = torch.linalg.vector_norm(gradient, dtype=wide)
    return norm.to(square_dtype(gradient.device)).square()


def square_dtype(device: torch.device) -> torch.dtype:
    """The precision of squared norms."""
    return torch.float32 if device.type == "mps" else torch.float64


_HALF = (torch.float16, torch.bfloat16)
