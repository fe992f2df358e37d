"""Which rule a layer is measured by, and the rules of the layers other than Linear."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from equipoise.engine.autograd_rule import AutogradRule
from equipoise.engine.rules import Gradients, LayerRule, LinearRule, split_layer, squared_norm


def rule_of(
    layer: nn.Module, parameters: Mapping[str, Tensor], named: bool, inputs: Any, features: list[Tensor]
) -> LayerRule:
    """The rule by which W, ``parameters`` of ``layer``, is measured in this forward pass: from the graph if W was ``named``."""
    if not named and list(parameters) == ["weight"] and len(features) == 1 and _is_plain(layer, inputs, features[0]):
        for kind, rule in _RULES.items():
            if isinstance(layer, kind) and type(layer).forward is kind.forward:
                return rule(layer)
    return AutogradRule([*parameters.values()])


def _is_plain(layer: nn.Module, inputs: Any, output: Tensor) -> bool:
    """Whether the layer computes what its class says: dense, real, with no forward and no hook of its own."""
    weight, everywhere = layer._parameters.get("weight"), torch.nn.modules.module
    if "forward" in layer.__dict__ or weight is None or layer._backward_hooks or layer._backward_pre_hooks:
        return False
    if not torch.compiler.is_compiling() and weight._backward_hooks:
        return False
    hooks: list[Any] = [
        *layer._forward_pre_hooks.values(),
        *layer._forward_hooks.values(),
        *everywhere._global_forward_pre_hooks.values(),
        *everywhere._global_forward_hooks.values(),
        *everywhere._global_backward_pre_hooks.values(),
        *everywhere._global_backward_hooks.values(),
    ]
    change_nothing = all(str(getattr(hook, "__module__", "")).startswith(_LOOKS_ON) for hook in hooks)
    if not (change_nothing and isinstance(inputs, Tensor)) or output.is_complex():
        return False
    return inputs.layout == output.layout == torch.strided and not (inputs.is_nested or output.is_nested)


_LOOKS_ON = ("torch.distributed", "equipoise.checking")
"""Where hooks come from that change nothing."""


class ConvRule(LayerRule):
    """PyTorch's own backward of a convolution, transposed or not."""

    def __init__(self, layer: nn.Module) -> None:
        conv = cast(nn.Conv2d, layer)  # or another: they share what is read here
        self.shape, self.stride, self.dilation = tuple(conv.weight.shape), conv.stride, conv.dilation
        self.transposed, self.groups = conv.transposed, conv.groups
        self.padding, self.mode = conv.padding, "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        self.pad_inputs: Sequence[int] = ()
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            # "same" may pad the two sides differently, and a mode other than zeros pads with values of the inputs
            self.padding, self.pad_inputs = (0,) * len(conv.stride), tuple(conv._reversed_padding_repeated_twice)

    def gradient(self, kept: Sequence[Tensor], gradients: Gradients) -> Tensor:
        """The weight's gradient."""
        g, inputs = cast(Tensor, gradients[0]), kept[0]
        inputs, g = (t.unsqueeze(0) if t.dim() < len(self.shape) else t for t in (inputs.to(g.dtype), g))
        if self.pad_inputs:
            inputs = functional.pad(inputs, self.pad_inputs, mode=self.mode)
        output_padding = [0] * len(self.stride)
        if self.transposed:  # forward may be given the output's size
            sizes = (g.shape[2:], inputs.shape[2:], self.shape[2:], self.stride, self.padding, self.dilation)
            least = [(i - 1) * s - 2 * p + d * (k - 1) + 1 for _, i, k, s, p, d in zip(*sizes, strict=True)]
            output_padding = [size - length for size, length in zip(g.shape[2:], least, strict=True)]
        settings = (self.stride, self.padding, self.dilation, self.transposed, output_padding, self.groups)
        weight, mask = g.new_empty(1).expand(self.shape), (False, True, False)
        found: Tensor = torch.ops.aten.convolution_backward(g, inputs, weight, None, *settings, mask)[1]
        if found.shape != self.shape:
            raise split_layer(f"a weight {self.shape} of which they give {tuple(found.shape)}")
        return found


class EmbeddingRule(LayerRule):
    """dL/dW_ko = sum over the n whose index is k of dL/dy_no, by PyTorch's own backward of an embedding."""

    def __init__(self, layer: nn.Embedding) -> None:
        padding = -1 if layer.padding_idx is None else layer.padding_idx
        self.settings = layer.num_embeddings, padding, layer.scale_grad_by_freq

    def gradient(self, kept: Sequence[Tensor], gradients: Gradients) -> Tensor:
        """The weight's gradient."""
        return torch.ops.aten.embedding_dense_backward(gradients[0], kept[0], *self.settings)  # type: ignore[no-any-return]


class LayerNormRule(LayerRule):
    """dL/dW_i = sum_n dL/dy_ni z_ni, with z the normalised inputs."""

    def __init__(self, layer: nn.LayerNorm) -> None:
        self.shape, self.eps = tuple(layer.normalized_shape), layer.eps

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


_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_RULES: dict[type[nn.Module], Callable[[Any], LayerRule]] = {
    nn.Linear: LinearRule,
    **dict.fromkeys(_CONVS, ConvRule),
    nn.Embedding: EmbeddingRule,
    nn.LayerNorm: LayerNormRule,
}
