"""SegNet on VGG16, as in the paper's experiments on NYUv2."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, pairwise
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from equipoise.lab.networks.backbone import Backbone, scaled

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of the convolutions of each stage of VGG16."""


@final
@dataclass(frozen=True)
class SegNet(Backbone):
    """SegNet: VGG16's convolutions, and their mirror image, un-pooled by the indices of the pooling.

    At width 1 it has 29 million parameters, all shared up to the final layer, as the paper says. The last shared layer is the
    last but one convolution, 64 to 64 channels; a head is ReLU and the last.

    Attributes:
        width: All channels but those of the images and of the outputs are multiplied with it.

    References:
        Badrinarayanan, Kendall and Cipolla 2017, "SegNet", IEEE TPAMI 39(12). In the paper: section 5.1.
    """

    width: float = 1.0
    reduction: ClassVar[int] = 1

    def trunk(self) -> nn.Module:
        """Thirteen convolutions down and eleven up, each with batch normalisation and ReLU."""
        return _EncoderDecoder(self.width)

    def shared_layer(self) -> nn.Module:
        """A convolution."""
        return _conv3(scaled(64, self.width), scaled(64, self.width))

    def head(self, outputs: int) -> nn.Module:
        """ReLU and a convolution."""
        return nn.Sequential(nn.ReLU(), _conv3(scaled(64, self.width), outputs))


class _EncoderDecoder(nn.Module):
    """Everything below the last shared layer."""

    def __init__(self, width: float) -> None:
        super().__init__()
        channels = [[scaled(c, width) for c in stage] for stage in _STAGES]
        before = [3, *(stage[-1] for stage in channels[:-1])]
        stages = [(first, *rest) for first, rest in zip(before, channels, strict=True)]
        mirrored: list[tuple[int, ...]] = [stage[::-1] for stage in stages[::-1]]
        mirrored[-1] = (channels[0][0],)  # its two convolutions are the last shared layer and the heads
        self.encoder = nn.ModuleList(map(_stage, stages))
        self.decoder = nn.ModuleList(map(_stage, mirrored))
        self.pool = nn.MaxPool2d(2, return_indices=True)

    def forward(self, images: Tensor) -> Tensor:
        places, features = [], images
        for stage in self.encoder:
            before = stage(features)
            features, indices = self.pool(before)
            places.append((before.shape, indices))
        for stage in self.decoder:
            features = stage(_unpooled(features, *places.pop()))
        return features


def _unpooled(features: Tensor, shape: torch.Size, indices: Tensor) -> Tensor:
    """``MaxUnpool2d``, which PyTorch does not run where only deterministic algorithms are allowed. No index occurs twice."""
    flat = features.new_zeros(*shape[:2], shape[2] * shape[3])
    return flat.scatter(2, indices.flatten(2), features.flatten(2)).reshape(shape)


def _stage(channels: tuple[int, ...]) -> nn.Sequential:
    steps = ((_conv3(a, b), nn.BatchNorm2d(b), nn.ReLU(inplace=True)) for a, b in pairwise(channels))
    return nn.Sequential(*chain.from_iterable(steps))


def _conv3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)
