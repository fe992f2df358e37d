"""The gradient at W from the original graph: of any layer, a whole block, or parameters that are named.

One call of ``autograd.grad`` per task on the part of the graph between W and the features, inside the one backward pass.
That is exact, runs no layer again, and costs about as much as a rule where most of that part is the layer itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from equipoise.engine.rules import Gradients, LayerRule


class AutogradRule(LayerRule):
    """The gradients of ``parameters``, flat and one after the other, by autograd from the features that are kept."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = tuple(parameters)

    def prepare(self, inputs: Any, features: list[Tensor], tasks: int, norms: bool) -> tuple[LayerRule, list[Tensor]]:
        """Keep the features: their graph is the way to the parameters."""
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "the last shared layer is measured from the original graph here, which a compiled region does not have: "
                "compile the modules below it and above it instead, or measure with a Fork behind a Linear or Conv layer"
            )
        return self, features

    def gradient(self, kept: Sequence[Tensor], gradients: Gradients) -> Tensor:
        """All gradients as one vector."""
        arrived = [(feature, g) for feature, g in zip(kept, gradients, strict=True) if g is not None]
        outputs, grad_outputs = zip(*arrived, strict=True)
        found = autograd(outputs, self.parameters, cast("tuple[Tensor, ...]", grad_outputs))
        if all(g is None for g in found):
            remedy = "is something on the way detached, or in a checkpoint that needs use_reentrant=False?"
            if any(map(is_sharded, self.parameters)):
                remedy = RESHARDED
            raise RuntimeError(
                "the last shared layer is measured from the original graph, in which the features must depend on W; found that "
                f"they do not: {remedy}"
            )
        return flat(self.parameters, found)


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


RESHARDED = (
    "fully_shard has sharded it again: use reshard_after_forward=False for this layer, or shard it with a module around it, as "
    "the Fork or the model"
)

_REMEDIES = {
    "donated buffer": "a compiled region on the way gives up after one pass: set torch._functorch.config.donated_buffer = "
    "False before anything is compiled, or measure with a Fork behind a layer that has a rule of its own",
    "use_reentrant": "a reentrant checkpoint on the way does not have: checkpoint with use_reentrant=False",
}
"""PyTorch's words where a part of the graph cannot be used a second time -> the remedy."""
