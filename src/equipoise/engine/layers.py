"""Which rule a layer is measured by, and the rules of the layers other than Linear."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv1d_weight, conv2d_weight, conv3d_weight

from equipoise.engine.autograd_rule import AutogradRule
from equipoise.engine.norms import squared_norm
from equipoise.engine.parameters import split_layer
from equipoise.engine.rules import Gradients, LayerRule, LinearRule


def rule_of(
    layer: nn.Module, parameters: Mapping[str, Tensor], named: bool, inputs: Any, features: list[Tensor]
) -> LayerRule:
    """The rule by which ``parameters`` of ``layer`` are measured in this forward pass.

    Args:
        layer: The last shared layer.
        parameters: W, by name.
        named: Whether the caller has named W: it is measured from the graph.
        inputs: What the layer was given.
        features: What it gave.
    """
    if not named and list(parameters) == ["weight"] and len(features) == 1 and _is_plain(layer, inputs, features[0]):
        for kind, rule in _RULES.items():
            if isinstance(layer, kind) and type(layer).forward is kind.forward:
                found = rule(layer)
                if found is not None:
                    return found
    return AutogradRule([*parameters.values()])


def _is_plain(layer: nn.Module, inputs: Any, output: Tensor) -> bool:
    """Whether the layer computes what its class says: dense, real, with no forward and no hook of its own."""
    weight = layer._parameters.get("weight")
    if "forward" in layer.__dict__ or weight is None or layer._backward_hooks or layer._backward_pre_hooks:
        return False
    if not torch.compiler.is_compiling() and weight._backward_hooks:
        return False
    hooks = (*layer._forward_pre_hooks.values(), *layer._forward_hooks.values(), *_hooks_of_all_modules())
    if hooks and not all(str(getattr(hook, "__module__", "")).startswith(_LOOKS_ON) for hook in hooks):
        return False
    if not isinstance(inputs, Tensor) or output.is_complex():
        return False
    return inputs.layout == output.layout == torch.strided and not (inputs.is_nested or output.is_nested)


_LOOKS_ON = ("torch.distributed", "equipoise.checking")
"""Where hooks come from that change nothing."""


def _hooks_of_all_modules() -> list[Any]:
    """Those that ``torch.nn.modules.module.register_module_forward_hook`` and its like have put on every module."""
    module = torch.nn.modules.module
    found: list[Any] = [*module._global_forward_pre_hooks.values(), *module._global_forward_hooks.values()]
    return [*found, *module._global_backward_pre_hooks.values(), *module._global_backward_hooks.values()]


@dataclass(frozen=True)
class ConvRule(LayerRule):
    """The correlation of inputs and gradient, by PyTorch's own backward of the convolution."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | int
    dilation: tuple[int, ...]
    groups: int
    pad_inputs: tuple[int, ...] | None
    pad_mode: str

    @classmethod
    def of(cls, layer: nn.Module) -> ConvRule:
        """That of a convolution."""
        conv = cast(nn.Conv2d, layer)  # or 1d, or 3d: they share what is read here
        padding = conv.padding if conv.padding_mode == "zeros" else "explicit"
        by_number = not isinstance(padding, str)
        return cls(
            tuple(conv.weight.shape),
            conv.stride,
            0 if isinstance(padding, str) else padding,
            conv.dilation,
            conv.groups,
            # "same" may pad the two sides differently, and a mode other than zeros pads with values of the inputs
            None if by_number else tuple(conv._reversed_padding_repeated_twice),
            "constant" if conv.padding_mode == "zeros" else conv.padding_mode,
        )

    def gradient(self, kept: Sequence[Tensor], gradients: Gradients) -> Tensor:
        """The weight's gradient."""
        inputs, gradient = _batched(kept[0], gradients[0], len(self.shape) - 2)
        if self.pad_inputs is not None:
            inputs = functional.pad(inputs, self.pad_inputs, mode=self.pad_mode)
        settings = (self.stride, self.padding, self.dilation, self.groups)
        return _conv_weight(inputs, self.shape, gradient, *settings)


@dataclass(frozen=True)
class ConvTransposeRule(LayerRule):
    """A transposed convolution is the adjoint of a convolution: inputs and gradient change places.

    That convolution would give more than there were inputs where ``output_padding`` has added a whole stride, which it may
    where the dilation is larger: those inputs were zero.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @classmethod
    def of(cls, layer: nn.Module) -> ConvTransposeRule:
        """That of a transposed convolution."""
        conv = cast(nn.ConvTranspose2d, layer)
        padding = cast("tuple[int, ...]", conv.padding)
        return cls(tuple(conv.weight.shape), conv.stride, padding, conv.dilation, conv.groups)

    def gradient(self, kept: Sequence[Tensor], gradients: Gradients) -> Tensor:
        """The weight's gradient."""
        inputs, gradient = _batched(kept[0], gradients[0], len(self.shape) - 2)
        if any(d > s for d, s in zip(self.dilation, self.stride, strict=True)):
            settings = zip(gradient.shape[2:], self.shape[2:], self.stride, self.padding, self.dilation, strict=True)
            sizes = [(length + 2 * p - d * (kernel - 1) - 1) // s + 1 for length, kernel, s, p, d in settings]
            missing = [size - found for size, found in zip(sizes, inputs.shape[2:], strict=True)]
            inputs = functional.pad(inputs, [n for m in reversed(missing) for n in (0, m)])
        return _conv_weight(gradient, self.shape, inputs, self.stride, self.padding, self.dilation, self.groups)


@dataclass(frozen=True)
class EmbeddingRule(LayerRule):
    """dL/dW_ko = sum over the n whose index is k of dL/dy_no."""

    rows: int
    padding: int | None

    @classmethod
    def of(cls, layer: nn.Module) -> EmbeddingRule | None:
        """That of an embedding; None where it scales gradients or weights."""
        embedding = cast(nn.Embedding, layer)
        if embedding.scale_grad_by_freq or embedding.max_norm is not None:
            return None
        return cls(embedding.num_embeddings, embedding.padding_idx)

    def gradient(self, kept: Sequence[Tensor], gradients: Gradients) -> Tensor:
        """The weight's gradient."""
        g = cast(Tensor, gradients[0])
        weight = g.new_zeros(self.rows, g.shape[-1])
        weight = weight.index_add(0, kept[0].reshape(-1), g.reshape(-1, g.shape[-1]))
        if self.padding is not None:
            weight[self.padding] = 0  # this row is never trained
        return weight


@dataclass(frozen=True)
class LayerNormRule(LayerRule):
    """dL/dW_i = sum_n dL/dy_ni z_ni, with z the normalised inputs."""

    shape: tuple[int, ...]
    eps: float

    @classmethod
    def of(cls, layer: nn.Module) -> LayerNormRule:
        """That of a layer normalisation."""
        norm = cast(nn.LayerNorm, layer)
        return cls(tuple(norm.normalized_shape), norm.eps)

    def gradient(self, kept: Sequence[Tensor], gradients: Gradients) -> Tensor:
        """The weight's gradient."""
        g = cast(Tensor, gradients[0])
        dtype = torch.promote_types(g.dtype, torch.float32)
        normalised = functional.layer_norm(kept[0].to(dtype), self.shape, eps=self.eps)
        return (normalised * g.to(dtype)).reshape(-1, *self.shape).sum(0)


class FeaturesRule(LayerRule):
    """Norms at the features, where there is no W. They add up over a batch, whose samples have features of their own."""

    def prepare(self, inputs: Any, features: list[Tensor], tasks: int, norms: bool) -> tuple[LayerRule, list[Tensor]]:
        """Keep nothing."""
        return self, []

    def squared_norm(self, kept: Sequence[Tensor], gradients: Gradients) -> Tensor:
        """The squared norm over all of the features ``()``."""
        return torch.stack([squared_norm(g) for g in gradients if g is not None]).sum()


def _batched(inputs: Tensor, gradient: Tensor | None, dimensions: int) -> tuple[Tensor, Tensor]:
    """Both in one precision, a single sample as a batch of one."""
    g = cast(Tensor, gradient)
    pair = inputs.to(g.dtype), g
    first, second = (tensor.unsqueeze(0) if tensor.dim() == dimensions + 1 else tensor for tensor in pair)
    return first, second


def _conv_weight(inputs: Tensor, shape: tuple[int, ...], gradient: Tensor, *settings: Any) -> Tensor:
    weight: Tensor = _CONV_WEIGHT[len(shape) - 2](inputs, shape, gradient, *settings)
    if weight.shape != shape:
        raise split_layer(f"a weight {shape} of which they give {tuple(weight.shape)}")
    return weight


_CONV_WEIGHT = {1: conv1d_weight, 2: conv2d_weight, 3: conv3d_weight}

_RULES: dict[type[nn.Module], Callable[[nn.Module], LayerRule | None]] = {
    nn.Linear: lambda layer: LinearRule(tuple(cast(Tensor, layer.weight).shape)),
    nn.Conv1d: ConvRule.of,
    nn.Conv2d: ConvRule.of,
    nn.Conv3d: ConvRule.of,
    nn.ConvTranspose1d: ConvTransposeRule.of,
    nn.ConvTranspose2d: ConvTransposeRule.of,
    nn.ConvTranspose3d: ConvTransposeRule.of,
    nn.Embedding: EmbeddingRule.of,
    nn.LayerNorm: LayerNormRule.of,
}
