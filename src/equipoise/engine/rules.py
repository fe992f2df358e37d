"""The gradient at W of one task, from the inputs of the last shared layer and the gradient at its output.

Index letters, used throughout: n and m run over samples (and positions), i over inputs, o over outputs. Other layers than
Linear: `equipoise.engine.layers`; without a rule of their own: `equipoise.engine.autograd_rule`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

Gradients = Sequence[Tensor | None]
"""The gradient at every tensor of the features; None where the loss does not depend on it."""

_HALF = (torch.float16, torch.bfloat16)


class LayerRule:
    """How the gradient of W follows from the gradient at the features."""

    def prepare(self, inputs: Any, features: list[Tensor], tasks: int, norms: bool) -> tuple[LayerRule, list[Tensor]]:
        """The rule for this forward pass, and the tensors that have to be kept for it; ``norms``: no gradients are wanted."""
        return self, [plain(inputs)]

    def gradient(self, kept: Sequence[Tensor], gradients: Gradients) -> Tensor:
        """The gradient of W; not of a rule that measures norms alone."""
        raise NotImplementedError

    def squared_norm(self, kept: Sequence[Tensor], gradients: Gradients) -> Tensor:
        """The squared norm of the gradient of W ``()``."""
        return squared_norm(self.gradient(kept, gradients))


class LinearRule(LayerRule):
    """dL/dW_oi = sum_n dL/dy_no x_ni."""

    def __init__(self, layer: nn.Linear) -> None:
        self.shape = tuple(layer.weight.shape)

    def prepare(self, inputs: Any, features: list[Tensor], tasks: int, norms: bool) -> tuple[LayerRule, list[Tensor]]:
        """Take the ghost norm where that is less work; not in half precision, where it would lose too much."""
        (output,) = features
        o, i = self.shape
        samples = output.numel() // max(output.shape[-1], 1)
        if norms and samples * (i + tasks * o) < tasks * i * o and output.dtype in (torch.float32, torch.float64):
            whole = inputs.shape[-1] == i and output.shape[-1] == o
            if whole and inputs.dtype == output.dtype:
                x = plain(inputs).reshape(-1, i)
                return GHOST_NORM, [x @ x.mT]
        return self, [plain(inputs)]

    def gradient(self, kept: Sequence[Tensor], gradients: Gradients) -> Tensor:
        """The weight's gradient."""
        (x,), (g,) = kept, gradients
        assert g is not None
        if x.shape[:-1] != g.shape[:-1] or (g.shape[-1], x.shape[-1]) != self.shape:
            raise split_layer(f"inputs {tuple(x.shape)} and a gradient {tuple(g.shape)} for a weight {self.shape}")
        rows = g.reshape(-1, g.shape[-1])
        return rows.mT @ x.to(rows.dtype).reshape(-1, x.shape[-1])


class GhostNorm(LayerRule):
    """sum_oi (dL/dW_oi)^2 = sum_nm K_nm (sum_o dL/dy_no dL/dy_mo), with K_nm = sum_i x_ni x_mi, which all tasks share.

    The literature on differential privacy calls this the ghost norm: it makes no weight gradient.
    """

    def squared_norm(self, kept: Sequence[Tensor], gradients: Gradients) -> Tensor:
        """The squared norm of the weight's gradient ``()``."""
        (gram,), (g,) = kept, gradients
        assert g is not None
        g = g.reshape(-1, g.shape[-1])  # there may be no sample at all
        if g.shape[1] > g.shape[0]:
            return torch.dot((g @ g.mT).view(-1), gram.view(-1))
        return torch.dot((gram @ g).view(-1), g.reshape(-1))


GHOST_NORM = GhostNorm()


def squared_norm(gradient: Tensor) -> Tensor:
    """The squared norm, in a precision in which that of scaled half-precision gradients does not overflow."""
    wide = None if gradient.dtype not in _HALF else torch.float32
    norm: Tensor = torch.linalg.vector_norm(gradient, dtype=wide)
    return norm.to(square_dtype(gradient.device)).square()


def square_dtype(device: torch.device) -> torch.dtype:
    """The precision of squared norms."""
    return torch.float32 if device.type == "mps" else torch.float64


def plain(inputs: Tensor) -> Tensor:
    """A layer's input without its graph, and without a class of its own."""
    detached = inputs.detach()
    return detached if type(detached) is Tensor or torch.compiler.is_compiling() else detached.as_subclass(Tensor)


def split_layer(found: str) -> RuntimeError:
    """The error where this process sees a part of the last shared layer only."""
    return RuntimeError(
        "the gradient of the last shared layer's weight is computed from the layer's inputs and the gradient at its outputs, "
        f"which must be whole; found {found}. Under tensor parallelism a process may see a part of them only: name the "
        "parameter, parameters=('weight',), so that it is measured from the graph"
    )
