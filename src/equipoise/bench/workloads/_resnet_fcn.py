"""A thinned ResNet-50 with a shallow decoder, as in the paper's experiments on NYUv2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor, nn

from equipoise.bench.workloads._dense import CHANNELS, Dense
from equipoise.bench.workloads._workload import Heads, Parts


@final
@dataclass(frozen=True, kw_only=True)
class ResNetFCN(Dense):
    """A fully convolutional ResNet-50, thinned, with learned up-sampling to a quarter of the inputs; three dense tasks.

    Strides sit in the first layer of a stage, and layers of 2048 filters have 1024: 15 million parameters.
    """

    reduction: int = 4
    last_shared: ClassVar[str] = "the last convolution of the decoder, 64 to 64 channels"

    def parts(self) -> Parts:
        """Each task's head is one convolution."""
        encoder = nn.Sequential(
            nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
            _stage(64, 64, 256, blocks=3, stride=1),
            _stage(256, 128, 512, blocks=4, stride=2),
            _stage(512, 256, 1024, blocks=6, stride=2),
            _stage(1024, 256, 1024, blocks=3, stride=2),
        )
        decoder = nn.Sequential(_up(1024, 256), _up(256, 128), _up(128, 64))
        heads = {task: nn.Sequential(nn.ReLU(), nn.Conv2d(64, channels, 1)) for task, channels in CHANNELS.items()}
        return Parts(nn.Sequential(encoder, decoder), nn.Conv2d(64, 64, 3, padding=1), Heads(heads))


class _Residual(nn.Module):
    """``ReLU(path(x) + shortcut(x))``."""

    def __init__(self, path: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.path, self.shortcut, self.relu = path, shortcut, nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.relu(self.path(features) + self.shortcut(features))
        return out


def _stage(inputs: int, inner: int, outputs: int, *, blocks: int, stride: int) -> nn.Sequential:
    first = _bottleneck(inputs, inner, outputs, stride, _conv(inputs, outputs, 1, stride))
    rest = (_bottleneck(outputs, inner, outputs, 1, nn.Identity()) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


def _bottleneck(inputs: int, inner: int, outputs: int, stride: int, shortcut: nn.Module) -> _Residual:
    reduce, middle = _conv(inputs, inner, 1, stride), _conv(inner, inner, 3)
    return _Residual(nn.Sequential(reduce, nn.ReLU(), middle, nn.ReLU(), _conv(inner, outputs, 1)), shortcut)


def _up(inputs: int, outputs: int) -> nn.Sequential:
    path = nn.Sequential(_conv(outputs, outputs, 3), nn.ReLU(), _conv(outputs, outputs, 3))
    return nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 2, stride=2), _Residual(path, nn.Identity()))


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))
