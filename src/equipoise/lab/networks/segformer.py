"""SegFormer, a transformer for dense tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from equipoise.lab.extra import require
from equipoise.lab.networks.backbone import Backbone

_SIZES: dict[str, dict[str, Any]] = {
    "b0": {"hidden_sizes": [32, 64, 160, 256], "depths": [2, 2, 2, 2], "decoder_hidden_size": 256},
    "b2": {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 4, 6, 3], "decoder_hidden_size": 768},
}


@final
@dataclass(frozen=True)
class SegFormer(Backbone):
    """SegFormer from random initial weights: the encoder of the package ``transformers`` and the all-MLP decoder.

    The last shared layer is the decoder's 1 x 1 convolution that fuses the four stages; a head is batch normalisation, ReLU
    and a 1 x 1 convolution, on a quarter of the images' height.

    Attributes:
        size: ``"b0"``, 4 million parameters, or ``"b2"``, 27 million: the encoders MiT-B0 and MiT-B2 of the paper.

    Differs from the paper:
        Nothing is pre-trained. Batch normalisation after the fusing belongs to each head, so that the layer before it is the
        last that all tasks share; there is no dropout before the last convolution.

    References:
        Xie et al. 2021, "SegFormer", NeurIPS, sections 3.1 and 3.2, Table 6.
    """

    size: Literal["b0", "b2"] = "b0"
    reduction: ClassVar[int] = 4

    def trunk(self) -> nn.Module:
        """The encoder, and its four stages brought to one number of channels and one height."""
        transformers = require("transformers", extra="data")
        config = transformers.SegformerConfig(**_SIZES[self.size])
        return _Stages(transformers.SegformerModel(config), config.hidden_sizes, config.decoder_hidden_size)

    def shared_layer(self) -> nn.Module:
        """A 1 x 1 convolution without bias."""
        return nn.Conv2d(4 * self._decoder, self._decoder, 1, bias=False)

    def head(self, outputs: int) -> nn.Module:
        """Batch normalisation, ReLU and a 1 x 1 convolution."""
        return nn.Sequential(nn.BatchNorm2d(self._decoder), nn.ReLU(), nn.Conv2d(self._decoder, outputs, 1))

    @property
    def _decoder(self) -> int:
        width: int = _SIZES[self.size]["decoder_hidden_size"]
        return width


class _Stages(nn.Module):
    """The stages of the encoder, projected and up-sampled to the size of the first, in one tensor."""

    def __init__(self, encoder: nn.Module, channels: list[int], width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.projections = nn.ModuleList(nn.Conv2d(count, width, 1) for count in channels)

    def forward(self, images: Tensor) -> Tensor:
        stages = self.encoder(images, output_hidden_states=True).hidden_states
        size = stages[0].shape[2:]
        brought = [
            functional.interpolate(project(stage), size=size, mode="bilinear", align_corners=False)
            for project, stage in zip(self.projections, stages, strict=True)
        ]
        return torch.cat(brought, dim=1)
