"""A thinned ResNet-50 with a shallow decoder, as in the paper's experiments on NYUv2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from equipoise.bench.workloads.dense import Dense
from equipoise.bench.workloads.workload import Parts
from equipoise.lab.networks import resnet_fcn


@final
@dataclass(frozen=True, kw_only=True)
class ResNetFCN(Dense):
    """A fully convolutional ResNet-50 with 15 million parameters and three dense tasks on a quarter of the height."""

    reduction: int = 4
    last_shared: ClassVar[str] = "the last convolution of the decoder, 64 to 64 channels"

    def parts(self) -> Parts:
        """Each task's head is one convolution."""
        return self.parts_of(resnet_fcn.ResNetFCN())
