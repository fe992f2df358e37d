"""The gradient of a layer's weight, from the layer's inputs and the gradient at its outputs.

Index letters, used throughout: n and m run over samples (and positions), i over inputs, o over outputs.

A layer without a rule here, a whole block, or a chosen list of parameters goes the general way: one call of
``autograd.grad`` per task on the part of the original graph between the parameters and the features, inside the one
backward pass. That is as exact, runs nothing again, and costs about as much where most of that part is the layer itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv1d_weight, conv2d_weight, conv3d_weight
from torch.nn.utils.parametrize import is_parametrized

from equipoise.engine._node import Gradients
from equipoise.engine._passages import Squares, Statistic, one_by_one, squared_norm

Rule = Callable[[Tensor, Tensor], Tensor]
"""``(inputs of the layer, gradient at its output) -> gradient of its weight``."""


class Direct(NamedTuple):
    """How a layer's weight is measured from the layer's inputs and the gradients at its output.

    Attributes:
        statistic: The gradient at the weight.
        squares: The squared norms of all tasks' gradients, which may cost less.
    """

    statistic: Statistic
    squares: Squares


def direct(layer: nn.Module) -> Direct | None:
    """The rule of ``layer``, or None where there is none for it or its weight is not a parameter of its own."""
    for kind, rule_of in _RULES.items():
        if isinstance(layer, kind) and type(layer).forward is kind.forward:
            plain = "weight" in layer._parameters and layer.weight is not None and not is_parametrized(layer)
            rule = rule_of(layer) if plain else None
            if rule is None:
                return None
            statistic = partial(_apply_rule, rule=rule, shape=tuple(layer.get_parameter("weight").shape))
            linear = kind is nn.Linear
            return Direct(statistic, partial(_linear_squares, statistic=statistic) if linear else one_by_one(statistic))
    return None


def _apply_rule(kept: Sequence[Tensor], gradients: Gradients, *, rule: Rule, shape: tuple[int, ...]) -> Tensor:
    (inputs,), (gradient,) = kept, gradients
    weight = rule(inputs, cast(Tensor, gradient))
    if weight.shape != shape:
        raise _split_layer(f"a weight {shape} of which they give {tuple(weight.shape)}")
    return weight


def _split_layer(found: str) -> RuntimeError:
    """The error where this process sees a part of the last shared layer only."""
    return RuntimeError(
        "the gradient of the last shared layer's weight is computed from the layer's inputs and the gradient at its outputs, "
        f"which must be whole; found {found}. Under tensor parallelism a process may see a part of them only: name the "
        "parameter, parameters=('weight',), so that it is measured from the graph"
    )


def general(parameters: Sequence[Tensor]) -> Statistic:
    """The gradients of ``parameters``, flat and one after the other, by autograd from the features kept."""
    return partial(_by_autograd, parameters=tuple(parameters))


def _by_autograd(kept: Sequence[Tensor], gradients: Gradients, *, parameters: Sequence[Tensor]) -> Tensor:
    arrived = [(feature, g) for feature, g in zip(kept, gradients, strict=True) if g is not None]
    outputs, grad_outputs = zip(*arrived, strict=True)
    try:
        found = torch.autograd.grad(outputs, parameters, grad_outputs, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        remedy = next((remedy for word, remedy in _REMEDIES.items() if word in str(error)), None)
        if remedy is None:
            raise
        raise RuntimeError(f"the last shared layer is measured from the original graph, which {remedy}") from error
    return torch.cat([flat(p, g) for p, g in zip(parameters, found, strict=True)])


def flat(parameter: Tensor, gradient: Tensor | None) -> Tensor:
    """A gradient as a vector, zeros where there is none, in at least single precision."""
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    if gradient is None:
        return torch.zeros(parameter.numel(), dtype=dtype, device=parameter.device)
    if is_sharded(gradient):
        gradient = gradient.full_tensor()  # type: ignore[attr-defined]
    return gradient.to_dense().reshape(-1).to(dtype) if gradient.is_sparse else gradient.reshape(-1).to(dtype)


def is_sharded(tensor: Tensor) -> bool:
    """Whether every process holds a part of the tensor only: a DTensor, not imported, as that takes its time."""
    return hasattr(tensor, "full_tensor")


def at_the_features(kept: Sequence[Tensor], tasks: Sequence[Gradients]) -> list[Tensor]:
    """Squared norms at the features: they add up over the parts of a batch, whose samples have features of their own."""
    return [torch.stack([squared_norm(g) for g in task if g is not None]).sum() for task in tasks]


def _linear(layer: nn.Module) -> Rule:
    return _linear_weight


def _linear_weight(inputs: Tensor, gradient: Tensor) -> Tensor:
    """dL/dW_oi = sum_n dL/dy_no x_ni."""
    if inputs.shape[:-1] != gradient.shape[:-1]:
        raise _split_layer(f"inputs {tuple(inputs.shape)} and a gradient {tuple(gradient.shape)}")
    rows = gradient.reshape(-1, gradient.shape[-1])
    return rows.mT @ inputs.to(gradient.dtype).reshape(-1, inputs.shape[-1])


def _linear_squares(kept: Sequence[Tensor], tasks: Sequence[Gradients], *, statistic: Statistic) -> list[Tensor]:
    """sum_oi (dL/dW_oi)^2, from the weight gradients or from Gram matrices, whichever takes fewer operations.

    With the Gram matrix of the inputs, K_nm = sum_i x_ni x_mi, which all tasks share, it is
    sum_nmo dL/dy_no K_nm dL/dy_mo.
    """
    (inputs,) = kept
    gradients = [cast(Tensor, gradient) for (gradient,) in tasks]
    if not gram_pays(inputs, gradients[0], len(tasks)):
        return one_by_one(statistic)(kept, tasks)
    rows = inputs.to(gradients[0].dtype).reshape(-1, inputs.shape[-1])
    gram = rows @ rows.mT
    return [in_gram(gram, gradient.reshape(len(rows), -1)) for gradient in gradients]


def gram_pays(inputs: Tensor, gradient: Tensor, tasks: int) -> bool:
    """Whether a layer is measured by Gram matrices: not in half precision, where they would lose too much."""
    samples = inputs.numel() // inputs.shape[-1]
    precise = gradient.dtype in (torch.float32, torch.float64)
    return precise and gram_is_less(samples, inputs.shape[-1], gradient.shape[-1], tasks)


def in_gram(gram: Tensor, gradient: Tensor) -> Tensor:
    """sum_nmo dL/dy_no K_nm dL/dy_mo."""
    return torch.dot((gram @ gradient).reshape(-1), gradient.reshape(-1))


def gram_is_less(samples: int, inputs: int, outputs: int, tasks: int) -> bool:
    """Whether Gram matrices of the samples take fewer multiplications than the weight gradients of all tasks."""
    return samples**2 * (inputs + tasks * outputs) < tasks * samples * inputs * outputs


def _conv(layer: nn.Module) -> Rule:
    conv = cast(nn.Conv2d, layer)  # or 1d, or 3d: they share what is read here
    padding = conv.padding if conv.padding_mode == "zeros" else "explicit"
    by_number = not isinstance(padding, str)
    return partial(
        _conv_weight,
        weight_shape=tuple(conv.weight.shape),
        stride=conv.stride,
        padding=0 if isinstance(padding, str) else padding,
        dilation=conv.dilation,
        groups=conv.groups,
        # "same" may pad the two sides differently, and a mode other than zeros pads with values of the inputs
        pad_inputs=None if by_number else tuple(conv._reversed_padding_repeated_twice),
        pad_mode="constant" if conv.padding_mode == "zeros" else conv.padding_mode,
    )


def _conv_weight(
    inputs: Tensor,
    gradient: Tensor,
    *,
    weight_shape: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...] | int,
    dilation: tuple[int, ...],
    groups: int,
    pad_inputs: tuple[int, ...] | None,
    pad_mode: str,
) -> Tensor:
    """The correlation of inputs and gradient, by PyTorch's own backward of the convolution."""
    dimensions = len(weight_shape) - 2
    inputs, gradient = _batched(inputs.to(gradient.dtype), dimensions), _batched(gradient, dimensions)
    if pad_inputs is not None:
        inputs = functional.pad(inputs, pad_inputs, mode=pad_mode)
    weight: Tensor = _CONV_WEIGHT[dimensions](inputs, weight_shape, gradient, stride, padding, dilation, groups)
    return weight


def _conv_transpose(layer: nn.Module) -> Rule:
    conv = cast(nn.ConvTranspose2d, layer)
    return partial(
        _conv_transpose_weight,
        weight_shape=tuple(conv.weight.shape),
        stride=conv.stride,
        padding=cast("tuple[int, ...]", conv.padding),
        dilation=conv.dilation,
        groups=conv.groups,
    )


def _conv_transpose_weight(
    inputs: Tensor,
    gradient: Tensor,
    *,
    weight_shape: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """A transposed convolution is the adjoint of a convolution: inputs and gradient change places.

    That convolution would give more than there were inputs where ``output_padding`` has added a whole stride, which it may
    where the dilation is larger: those inputs were zero.
    """
    dimensions = len(weight_shape) - 2
    inputs, gradient = _batched(inputs.to(gradient.dtype), dimensions), _batched(gradient, dimensions)
    if any(d > s for d, s in zip(dilation, stride, strict=True)):
        settings = zip(gradient.shape[2:], weight_shape[2:], stride, padding, dilation, strict=True)
        sizes = [(length + 2 * p - d * (kernel - 1) - 1) // s + 1 for length, kernel, s, p, d in settings]
        missing = [size - found for size, found in zip(sizes, inputs.shape[2:], strict=True)]
        inputs = functional.pad(inputs, [n for m in reversed(missing) for n in (0, m)])
    weight: Tensor = _CONV_WEIGHT[dimensions](gradient, weight_shape, inputs, stride, padding, dilation, groups)
    return weight


def _batched(tensor: Tensor, dimensions: int) -> Tensor:
    """A single sample as a batch of one."""
    return tensor.unsqueeze(0) if tensor.dim() == dimensions + 1 else tensor


def _embedding(layer: nn.Module) -> Rule | None:
    embedding = cast(nn.Embedding, layer)
    if embedding.scale_grad_by_freq or embedding.max_norm is not None:
        return None
    return partial(_embedding_weight, rows=embedding.num_embeddings, padding=embedding.padding_idx)


def _embedding_weight(inputs: Tensor, gradient: Tensor, *, rows: int, padding: int | None) -> Tensor:
    """dL/dW_ko = sum over the n whose index is k of dL/dy_no."""
    weight = gradient.new_zeros(rows, gradient.shape[-1])
    weight = weight.index_add(0, inputs.reshape(-1), gradient.reshape(-1, gradient.shape[-1]))
    if padding is not None:
        weight[padding] = 0  # this row is never trained
    return weight


def _layer_norm(layer: nn.Module) -> Rule:
    norm = cast(nn.LayerNorm, layer)
    return partial(_layer_norm_weight, shape=tuple(norm.normalized_shape), eps=norm.eps)


def _layer_norm_weight(inputs: Tensor, gradient: Tensor, *, shape: tuple[int, ...], eps: float) -> Tensor:
    """dL/dW_i = sum_n dL/dy_ni z_ni, with z the normalised inputs."""
    dtype = torch.promote_types(gradient.dtype, torch.float32)
    normalised = functional.layer_norm(inputs.to(dtype), shape, eps=eps)
    return (normalised * gradient.to(dtype)).reshape(-1, *shape).sum(0)


_REMEDIES = {
    "donated buffer": "a compiled region on the way gives up after one pass: set torch._functorch.config.donated_buffer = "
    "False before anything is compiled, or measure with a Fork behind a layer that has a rule of its own",
    "use_reentrant": "a reentrant checkpoint on the way does not have: checkpoint with use_reentrant=False",
}
"""What PyTorch says where a part of the graph cannot be used a second time -> what to do about it."""

_CONV_WEIGHT = {1: conv1d_weight, 2: conv2d_weight, 3: conv3d_weight}

_RULES: dict[type[nn.Module], Callable[[nn.Module], Rule | None]] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Conv3d: _conv,
    nn.ConvTranspose1d: _conv_transpose,
    nn.ConvTranspose2d: _conv_transpose,
    nn.ConvTranspose3d: _conv_transpose,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
}
