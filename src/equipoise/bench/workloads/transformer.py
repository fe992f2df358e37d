"""A transformer encoder with three tasks on every position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from equipoise.bench.workloads.workload import Heads, Parts, Workload

_LAYERS, _WIDTH, _CLASSES = 4, 256, 10


@dataclass(frozen=True, kw_only=True)
class _Encoder(Workload):
    """The batch and the tasks; a subclass says where the trunk ends.

    Attributes:
        length: Positions of a sequence.
        batch_size: Sequences per step.
    """

    length: int = 64
    batch_size: int = 16

    @property
    def tasks(self) -> tuple[str, ...]:
        """Classes, a number and a yes or no for every position."""
        return "classes", "number", "flag"

    def batch(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Random sequences."""
        positions = (self.batch_size, self.length)
        targets = {
            "classes": torch.randint(_CLASSES, positions),
            "number": torch.randn(*positions, 1),
            "flag": torch.randint(2, (*positions, 1)).float(),
        }
        return torch.randn(*positions, _WIDTH), targets

    def losses(self, outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """The mean over the positions of each task's loss."""
        return {
            "classes": functional.cross_entropy(outputs["classes"].flatten(0, 1), targets["classes"].flatten()),
            "number": functional.mse_loss(outputs["number"], targets["number"]),
            "flag": functional.binary_cross_entropy_with_logits(outputs["flag"], targets["flag"]),
        }


@final
@dataclass(frozen=True, kw_only=True)
class Transformer(_Encoder):
    """A transformer encoder of four layers and a projection behind it; three tasks on every position."""

    last_shared: ClassVar[str] = "the projection behind the encoder, 256 to 256"

    def parts(self) -> Parts:
        """The encoder, the projection, and the heads."""
        return Parts(_layers(_LAYERS), nn.Linear(_WIDTH, _WIDTH), _heads())


@final
@dataclass(frozen=True, kw_only=True)
class TransformerBlock(_Encoder):
    """A transformer encoder of four layers; three tasks on every position, read off the last layer."""

    last_shared: ClassVar[str] = "the whole last layer of the encoder, all its parameters"

    def parts(self) -> Parts:
        """Three layers, the fourth, and the heads."""
        return Parts(_layers(_LAYERS - 1), _layer(), _heads())


def _layers(number: int) -> nn.Sequential:
    return nn.Sequential(*(_layer() for _ in range(number)))


def _layer() -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(_WIDTH, 8, 4 * _WIDTH, dropout=0.0, batch_first=True)


def _heads() -> Heads:
    sizes = {"classes": _CLASSES, "number": 1, "flag": 1}
    return Heads({task: nn.Sequential(nn.ReLU(), nn.Linear(_WIDTH, size)) for task, size in sizes.items()})
