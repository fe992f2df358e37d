"""SegNet on VGG16, as in the paper's experiments on NYUv2."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, pairwise
from typing import ClassVar, final

from torch import Tensor, nn

from equipoise.bench.workloads._dense import CHANNELS, Dense
from equipoise.bench.workloads._workload import Heads, Parts

_STAGES = ((3, 64, 64), (64, 128, 128), (128, 256, 256, 256), (256, 512, 512, 512), (512, 512, 512, 512))
"""Channels before, between and after the convolutions of each stage of VGG16."""


@final
@dataclass(frozen=True, kw_only=True)
class SegNet(Dense):
    """SegNet: VGG16's convolutions, and their mirror image, un-pooled by the indices of the pooling; three dense tasks.

    29 million parameters, all shared up to the final layer, as the paper says; outputs have the size of the inputs.
    """

    last_shared: ClassVar[str] = "the last but one convolution, 64 to 64 channels"

    def parts(self) -> Parts:
        """Each task's head is the final convolution."""
        heads = {task: nn.Sequential(nn.ReLU(), _conv3(64, channels)) for task, channels in CHANNELS.items()}
        return Parts(_EncoderDecoder(), _conv3(64, 64), Heads(heads))


class _EncoderDecoder(nn.Module):
    """Everything below the last shared layer."""

    def __init__(self) -> None:
        super().__init__()
        mirrored: list[tuple[int, ...]] = [stage[::-1] for stage in _STAGES[::-1]]
        mirrored[-1] = (64,)  # its two convolutions are the last shared layer and the heads
        self.encoder = nn.ModuleList(map(_stage, _STAGES))
        self.decoder = nn.ModuleList(map(_stage, mirrored))
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

    def forward(self, images: Tensor) -> Tensor:
        places, features = [], images
        for stage in self.encoder:
            features, indices = self.pool(stage(features))
            places.append(indices)
        for stage in self.decoder:
            features = stage(self.unpool(features, places.pop()))
        return features


def _stage(channels: tuple[int, ...]) -> nn.Sequential:
    steps = ((_conv3(a, b), nn.BatchNorm2d(b), nn.ReLU(inplace=True)) for a, b in pairwise(channels))
    return nn.Sequential(*chain.from_iterable(steps))


def _conv3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)
