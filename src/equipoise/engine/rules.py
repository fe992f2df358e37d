"""The gradient at W of one task, from what a layer was given and the gradient at its output.

Index letters, used throughout: n and m run over samples (and positions), i over inputs, o over outputs.

A layer without a rule of its own, a whole block, or a chosen list of parameters is measured by `AutogradRule`: one call of
``autograd.grad`` per task on the part of the original graph between the parameters and the features, inside the one backward
pass. That is as exact, runs nothing again, and costs about as much where most of that part is the layer itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

Gradients = Sequence[Tensor | None]
"""The gradient at every tensor of the features; None where the loss does not depend on it."""


class LayerRule(ABC):
    """How the gradient of W follows from the gradient at the features."""

    def prepare(
        self, inputs: Any, features: list[Tensor], tasks: int, gradients: bool
    ) -> tuple[LayerRule, list[Tensor]]:
        """The rule for this forward pass, and the tensors that have to be kept for it.

        Args:
            inputs: What the layer was given.
            features: What it gave.
            tasks: How many tasks are measured.
            gradients: Whether gradients are wanted, and not norms alone.
        """
        return self, [plain(inputs)]

    @abstractmethod
    def gradient(self, kept: Sequence[Tensor], gradients: Gradients) -> Tensor:
        """The gradient of W."""

    def squared_norm(self, kept: Sequence[Tensor], gradients: Gradients) -> Tensor:
        """The squared norm of the gradient of W ``()``."""
        return squared_norm(self.gradient(kept, gradients))


@dataclass(frozen=True)
class LinearRule(LayerRule):
    """dL/dW_oi = sum_n dL/dy_no x_ni."""

    shape: tuple[int, ...]

    def prepare(
        self, inputs: Any, features: list[Tensor], tasks: int, gradients: bool
    ) -> tuple[LayerRule, list[Tensor]]:
        """Take the ghost norm where that is less work; not in half precision, where it would lose too much."""
        (output,) = features
        samples, (o, i) = output.numel() // max(output.shape[-1], 1), self.shape
        whole = inputs.shape[-1] == i and output.shape[-1] == o
        precise = whole and output.dtype in (torch.float32, torch.float64) and inputs.dtype == output.dtype
        if precise and not gradients and samples * (i + tasks * o) < tasks * i * o:
            x = plain(inputs).reshape(-1, i)
            return GhostNorm(), [x @ x.mT]
        return self, [plain(inputs)]

    def gradient(self, kept: Sequence[Tensor], gradients: Gradients) -> Tensor:
        """The weight's gradient."""
        x, g = kept[0], cast(Tensor, gradients[0])
        if x.shape[:-1] != g.shape[:-1] or (g.shape[-1], x.shape[-1]) != self.shape:
            raise split_layer(f"inputs {tuple(x.shape)} and a gradient {tuple(g.shape)} for a weight {self.shape}")
        rows = g.reshape(-1, g.shape[-1])
        return rows.mT @ x.to(rows.dtype).reshape(-1, x.shape[-1])


@dataclass(frozen=True)
class GhostNorm(LayerRule):
    """sum_oi (dL/dW_oi)^2 = sum_nm K_nm (sum_o dL/dy_no dL/dy_mo), with K_nm = sum_i x_ni x_mi, which all tasks share.

    The literature on differential privacy calls this the ghost norm: it makes no weight gradient.
    """

    def gradient(self, kept: Sequence[Tensor], gradients: Gradients) -> Tensor:
        """There is none."""
        raise NotImplementedError

    def squared_norm(self, kept: Sequence[Tensor], gradients: Gradients) -> Tensor:
        """The squared norm of the weight's gradient ``()``."""
        gram = kept[0]
        g = cast(Tensor, gradients[0]).reshape(len(gram), -1)
        if g.shape[1] > len(gram):
            return torch.dot((g @ g.mT).view(-1), gram.view(-1))
        return torch.dot((gram @ g).view(-1), g.reshape(-1))


@dataclass(frozen=True)
class AutogradRule(LayerRule):
    """The gradients of ``parameters``, flat and one after the other, by autograd from the features that are kept."""

    parameters: tuple[Tensor, ...]

    def prepare(
        self, inputs: Any, features: list[Tensor], tasks: int, gradients: bool
    ) -> tuple[LayerRule, list[Tensor]]:
        """Keep the features: their graph is the way to the parameters."""
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "the last shared layer is measured from the original graph here, which a compiled region does not have: "
                "compile what is below it and what is above it instead, or measure with a Fork behind a Linear or Conv layer"
            )
        return self, features

    def gradient(self, kept: Sequence[Tensor], gradients: Gradients) -> Tensor:
        """All gradients as one vector."""
        arrived = [(feature, g) for feature, g in zip(kept, gradients, strict=True) if g is not None]
        outputs, grad_outputs = zip(*arrived, strict=True)
        found = autograd(outputs, self.parameters, cast("tuple[Tensor, ...]", grad_outputs))
        if all(g is None for g in found):
            remedy = (
                RESHARDED
                if any(map(is_sharded, self.parameters))
                else "is something on the way detached, or in a checkpoint that needs use_reentrant=False?"
            )
            raise RuntimeError(
                "the last shared layer is measured from the original graph, in which the features must depend on W; found that "
                f"they do not: {remedy}"
            )
        return flat(self.parameters, found)


@dataclass(frozen=True)
class FeaturesRule(LayerRule):
    """Norms at the features, where there is no W. They add up over a batch, whose samples have features of their own."""

    def prepare(
        self, inputs: Any, features: list[Tensor], tasks: int, gradients: bool
    ) -> tuple[LayerRule, list[Tensor]]:
        """Keep nothing."""
        return self, []

    def gradient(self, kept: Sequence[Tensor], gradients: Gradients) -> Tensor:
        """There is none."""
        raise NotImplementedError

    def squared_norm(self, kept: Sequence[Tensor], gradients: Gradients) -> Tensor:
        """The squared norm over all of the features ``()``."""
        return torch.stack([squared_norm(g) for g in gradients if g is not None]).sum()


def autograd(
    outputs: Sequence[Tensor], parameters: Sequence[Tensor], grad_outputs: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """The gradients of ``parameters`` from the original graph, which stays; None for one that the outputs do not depend on.

    Raises:
        RuntimeError: A part of the graph cannot be used a second time; the message tells the remedy.
    """
    try:
        return torch.autograd.grad(outputs, parameters, grad_outputs, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        remedy = next((remedy for word, remedy in _REMEDIES.items() if word in str(error)), None)
        if remedy is None:
            raise
        raise RuntimeError(f"the last shared layer is measured from the original graph, which {remedy}") from error


def flat(parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Tensor:
    """Gradients as one real vector, zeros where there is none, in at least single precision."""
    return torch.cat([_flat(p, g) for p, g in zip(parameters, gradients, strict=True)])


def _flat(parameter: Tensor, gradient: Tensor | None) -> Tensor:
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    if gradient is None:
        zeros = torch.zeros(parameter.numel(), dtype=dtype, device=parameter.device)
        return torch.view_as_real(zeros).reshape(-1) if zeros.is_complex() else zeros
    if is_sharded(gradient):
        gradient = gradient.full_tensor()  # type: ignore[attr-defined]
    if gradient.is_sparse:
        gradient = gradient.to_dense()
    gradient = gradient.reshape(-1).to(dtype)
    return torch.view_as_real(gradient.resolve_conj()).reshape(-1) if gradient.is_complex() else gradient


def is_sharded(tensor: Tensor) -> bool:
    """Whether every process holds a part of the tensor only: a DTensor, not imported, as that takes its time."""
    return hasattr(tensor, "full_tensor")


def squared_norm(gradient: Tensor) -> Tensor:
    """The squared norm, in a precision in which that of scaled half-precision gradients does not overflow."""
    norm: Tensor = torch.linalg.vector_norm(gradient, dtype=_wide(gradient.dtype))
    return norm.to(square_dtype(gradient.device)).square()


def square_dtype(device: torch.device) -> torch.dtype:
    """The precision of squared norms."""
    return torch.float32 if device.type == "mps" else torch.float64


def _wide(dtype: torch.dtype) -> torch.dtype | None:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else None


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


RESHARDED = (
    "fully_shard has sharded it again: use reshard_after_forward=False for this layer, or shard it with a module around it, as "
    "the Fork or the model"
)

_REMEDIES = {
    "donated buffer": "a compiled region on the way gives up after one pass: set torch._functorch.config.donated_buffer = "
    "False before anything is compiled, or measure with a Fork behind a layer that has a rule of its own",
    "use_reentrant": "a reentrant checkpoint on the way does not have: checkpoint with use_reentrant=False",
}
"""What PyTorch says where a part of the graph cannot be used a second time -> what to do about it."""
