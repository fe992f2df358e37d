"""The gradient of a layer's weight, from the layer's inputs and the gradient at its outputs.

Index letters, used throughout: n runs over samples (and positions), i over inputs, o over outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv1d_weight, conv2d_weight, conv3d_weight

from equipoise.engine._node import Statistic

_CONV_WEIGHT = {1: conv1d_weight, 2: conv2d_weight, 3: conv3d_weight}


def weight_gradient(layer: nn.Module) -> Statistic:
    """The rule of ``layer``: ``(inputs, gradient at the features) -> gradient of the weight``.

    Raises:
        TypeError: There is no rule for this kind of layer, or a subclass has changed its forward.
    """
    for kind, rule in _RULES.items():
        if isinstance(layer, kind) and type(layer).forward is kind.forward:
            return rule(layer)
    known = ", ".join(kind.__name__ for kind in _RULES)
    raise TypeError(
        f"the last shared layer must be one of {known} (with its own forward), or None to measure at the features; "
        f"found {type(layer).__name__}"
    )


def _linear(layer: nn.Linear) -> Statistic:
    return _linear_weight


def _linear_weight(inputs: Tensor, gradient: Tensor) -> Tensor:
    """dL/dW_oi = sum_n dL/dy_no x_ni."""
    rows = gradient.reshape(-1, gradient.shape[-1])
    return rows.mT @ inputs.to(gradient.dtype).reshape(-1, inputs.shape[-1])


def _conv(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Statistic:
    padding = layer.padding if layer.padding_mode == "zeros" else "explicit"
    by_number = not isinstance(padding, str)
    return partial(
        _conv_weight,
        weight_shape=tuple(layer.weight.shape),
        stride=layer.stride,
        padding=0 if isinstance(padding, str) else padding,
        dilation=layer.dilation,
        groups=layer.groups,
        # "same" may pad the two sides differently, and a mode other than zeros pads with values of the inputs
        pad_inputs=None if by_number else tuple(layer._reversed_padding_repeated_twice),
        pad_mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode,
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
    inputs = inputs.to(gradient.dtype)
    if inputs.dim() == dimensions + 1:  # a single sample without a batch dimension
        inputs, gradient = inputs.unsqueeze(0), gradient.unsqueeze(0)
    if pad_inputs is not None:
        inputs = functional.pad(inputs, pad_inputs, mode=pad_mode)
    weight: Tensor = _CONV_WEIGHT[dimensions](inputs, weight_shape, gradient, stride, padding, dilation, groups)
    return weight


_RULES: dict[type[nn.Module], Callable[..., Statistic]] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Conv3d: _conv,
}
