"""The parts that the networks for images share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn


class Backbone(ABC):
    """A network for images, in the three parts that a problem asks for.

    Attributes:
        reduction: Height of the images over height of the features that the heads read.

    Shape:
        Images are ``(B, 3, H, W)``, with H and W divisible by 32; a head gives ``(B, outputs, H / reduction, W / reduction)``.
    """

    reduction: ClassVar[int]

    @abstractmethod
    def trunk(self) -> nn.Module:
        """The encoder and the decoder, below the last shared layer."""

    @abstractmethod
    def shared_layer(self) -> nn.Module:
        """The last shared layer."""

    @abstractmethod
    def head(self, outputs: int) -> nn.Module:
        """The layers of one task, with ``outputs`` channels."""


class Residual(nn.Module):
    """``ReLU(path(x) + shortcut(x))``."""

    def __init__(self, path: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.path, self.shortcut, self.relu = path, shortcut, nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """Add the outputs of the path and the shortcut."""
        out: Tensor = self.relu(self.path(features) + self.shortcut(features))
        return out


def scaled(channels: int, width: float) -> int:
    """A number of channels times ``width``, at least 1."""
    return max(1, round(channels * width))
