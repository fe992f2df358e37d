"""SegNet on VGG16, as in the paper's experiments on NYUv2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from equipoise.bench.workloads.dense import Dense
from equipoise.bench.workloads.workload import Parts
from equipoise.lab.networks import segnet


@final
@dataclass(frozen=True, kw_only=True)
class SegNet(Dense):
    """SegNet with 29 million parameters and three dense tasks; outputs have the size of the inputs."""

    last_shared: ClassVar[str] = "the last but one convolution, 64 to 64 channels"

    def parts(self) -> Parts:
        """Each task's head is the final convolution."""
        return self.parts_of(segnet.SegNet())
