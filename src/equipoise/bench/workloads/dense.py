"""The three dense tasks of the paper's NYUv2 set-up, on random images."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from equipoise.bench.workloads.workload import Heads, Parts, Workload
from equipoise.lab.networks.backbone import Backbone

CHANNELS = {"segmentation": 13, "depth": 1, "normals": 3}
"""The number of outputs of each task for every pixel: the scores of 13 classes, a depth, a direction."""


@dataclass(frozen=True, kw_only=True)
class Dense(Workload, ABC):
    """Segmentation by cross entropy, depth by squared error, normals by cosine.

    Attributes:
        image: Height and width of the inputs.
        batch_size: Images per step.
        reduction: Height of the inputs over height of the outputs.
    """

    image: int = 64
    batch_size: int = 2
    reduction: int = 1

    @property
    def tasks(self) -> tuple[str, ...]:
        """The three tasks."""
        return tuple(CHANNELS)

    def parts_of(self, network: Backbone) -> Parts:
        """The network's trunk and last shared layer, and a head for each task."""
        heads = {task: network.head(channels) for task, channels in CHANNELS.items()}
        return Parts(network.trunk(), network.shared_layer(), Heads(heads))

    def batch(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Random images, classes, depths and unit normals."""
        side = self.image // self.reduction
        targets = {
            "segmentation": torch.randint(CHANNELS["segmentation"], (self.batch_size, side, side)),
            "depth": torch.randn(self.batch_size, 1, side, side),
            "normals": functional.normalize(torch.randn(self.batch_size, 3, side, side)),
        }
        return torch.randn(self.batch_size, 3, self.image, self.image), targets

    def losses(self, outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """The mean over the pixels of each task's loss."""
        return {
            "segmentation": functional.cross_entropy(outputs["segmentation"], targets["segmentation"]),
            "depth": functional.mse_loss(outputs["depth"], targets["depth"]),
            "normals": 1 - functional.cosine_similarity(outputs["normals"], targets["normals"]).mean(),
        }
