"""A thinned ResNet-50 with a shallow decoder, as in the paper's experiments on NYUv2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import nn

from equipoise.lab.networks.backbone import Backbone, Residual, scaled


@final
@dataclass(frozen=True)
class ResNetFCN(Backbone):
    """A fully convolutional ResNet-50, thinned, with learned up-sampling to a quarter of the images' height.

    Strides sit in the first layer of a stage, and layers of 2048 filters have 1024: 15 million parameters at width 1. The
    last shared layer is the last convolution of the decoder, 64 to 64 channels; a head is ReLU and one convolution.

    Attributes:
        width: All channels but those of the images and of the outputs are multiplied with it.

    References:
        Chen et al. 2018, GradNorm, section 5.1; He et al. 2016, "Deep residual learning for image recognition", CVPR.
    """

    width: float = 1.0
    reduction: ClassVar[int] = 4

    def trunk(self) -> nn.Module:
        """Sixteen bottlenecks down to a thirty-second of the height, and three steps up."""
        c64, c128, c256, c512, c1024 = (scaled(c, self.width) for c in (64, 128, 256, 512, 1024))
        encoder = nn.Sequential(
            nn.Conv2d(3, c64, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(c64),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
            _stage(c64, c64, c256, blocks=3, stride=1),
            _stage(c256, c128, c512, blocks=4, stride=2),
            _stage(c512, c256, c1024, blocks=6, stride=2),
            _stage(c1024, c256, c1024, blocks=3, stride=2),
        )
        return nn.Sequential(encoder, nn.Sequential(_up(c1024, c256), _up(c256, c128), _up(c128, c64)))

    def shared_layer(self) -> nn.Module:
        """A convolution."""
        return nn.Conv2d(scaled(64, self.width), scaled(64, self.width), 3, padding=1)

    def head(self, outputs: int) -> nn.Module:
        """ReLU and a convolution of size 1."""
        return nn.Sequential(nn.ReLU(), nn.Conv2d(scaled(64, self.width), outputs, 1))


def _stage(inputs: int, inner: int, outputs: int, *, blocks: int, stride: int) -> nn.Sequential:
    first = _bottleneck(inputs, inner, outputs, stride, _conv(inputs, outputs, 1, stride))
    rest = (_bottleneck(outputs, inner, outputs, 1, nn.Identity()) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


def _bottleneck(inputs: int, inner: int, outputs: int, stride: int, shortcut: nn.Module) -> Residual:
    reduce, middle = _conv(inputs, inner, 1, stride), _conv(inner, inner, 3)
    return Residual(nn.Sequential(reduce, nn.ReLU(), middle, nn.ReLU(), _conv(inner, outputs, 1)), shortcut)


def _up(inputs: int, outputs: int) -> nn.Sequential:
    path = nn.Sequential(_conv(outputs, outputs, 3), nn.ReLU(), _conv(outputs, outputs, 3))
    return nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 2, stride=2), Residual(path, nn.Identity()))


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))
