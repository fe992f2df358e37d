"""The common part of the problems with a label for every pixel: networks, losses and tasks."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from equipoise.lab.networks.backbone import Backbone
from equipoise.lab.networks.resnet_fcn import ResNetFCN
from equipoise.lab.networks.segformer import SegFormer
from equipoise.lab.networks.segnet import SegNet
from equipoise.lab.problem import Problem, Task
from equipoise.lab.problems import dense_metrics as metrics

CLASSES = 13
_BACKBONES: dict[tuple[str, str], Backbone] = {
    ("segnet", "small"): SegNet(0.25),
    ("segnet", "large"): SegNet(),
    ("resnet_fcn", "small"): ResNetFCN(0.25),
    ("resnet_fcn", "large"): ResNetFCN(),
    ("segformer", "small"): SegFormer("b0"),
    ("segformer", "large"): SegFormer("b2"),
}


@dataclass(frozen=True, kw_only=True)
class DenseProblem(Problem, ABC):
    """Tasks with a label for every pixel, on one of three networks.

    Attributes:
        backbone: SegNet on VGG16 or the thin ResNet-50 FCN, both as in the GradNorm paper, or SegFormer. None is pre-trained.
        capacity: The size of the network: a quarter of the paper's channels or all of them; MiT-B0 or MiT-B2.
        depth_loss: The mean absolute or the mean squared error of the depth, over the pixels that have one.
        output_reduction: Height of the images over height of the outputs and labels, which are taken at every so many pixels.
    """

    backbone: Literal["segnet", "resnet_fcn", "segformer"] = "segnet"
    capacity: Literal["small", "large"] = "small"
    depth_loss: Literal["absolute", "squared"] = "absolute"
    output_reduction: Literal[1, 2, 4] = 1

    def trunk(self) -> nn.Module:
        """Encoder and decoder."""
        return self._network().trunk()

    def shared_layer(self) -> nn.Module:
        """The decoder's last layer."""
        return self._network().shared_layer()

    def head(self, task: Task) -> nn.Module:
        """The network's head, with its outputs brought to the height of the labels."""
        head = self._network().head(self.channels()[task.name])
        factor = self._network().reduction / self.output_reduction
        if factor > 1:
            return nn.Sequential(head, nn.Upsample(scale_factor=factor, mode="bilinear"))
        return nn.Sequential(head, nn.AvgPool2d(round(1 / factor)))

    def channels(self) -> dict[str, int]:
        """The number of outputs of every task."""
        return {"segmentation": CLASSES, "depth": 1, "normals": 3}

    def reduced(self, targets: Tensor) -> Tensor:
        """Labels ``(N, *, H, W)`` at every ``output_reduction``-th pixel."""
        step = self.output_reduction
        return targets[..., step // 2 :: step, step // 2 :: step].contiguous()

    def _network(self) -> Backbone:
        return _BACKBONES[self.backbone, self.capacity]


def check_size(**sizes: int) -> None:
    """Refuse a height or width that the networks cannot halve five times.

    Raises:
        ValueError: A size is not a positive multiple of 32.
    """
    for name, size in sizes.items():
        if size < 32 or size % 32:
            raise ValueError(f"{name}: wanted a multiple of 32, found {size}")


def segmentation() -> Task:
    """Cross entropy over the labelled pixels; mean intersection over union, and pixel accuracy."""
    more = {"pixel accuracy": metrics.PixelAccuracy}
    return Task("segmentation", _cross_entropy, partial(metrics.MeanIoU, CLASSES), "classification", more_metrics=more)


def depth(loss: Literal["absolute", "squared"]) -> Task:
    """Absolute or squared error over the pixels with a depth; absolute, relative and root mean squared error."""
    more = {"relative error": metrics.DepthRelativeError, "RMS error": metrics.DepthRMSError}
    chosen = _absolute_error if loss == "absolute" else _squared_error
    return Task("depth", chosen, metrics.DepthAbsoluteError, "regression", more_metrics=more)


def normals() -> Task:
    """One minus the cosine over the pixels with a normal; angles in degrees."""
    within = {f"within {degrees:g}": partial(metrics.AngleWithin, degrees) for degrees in (11.25, 22.5, 30.0)}
    return Task(
        "normals", _cosine, metrics.MeanAngle, "regression", more_metrics={"median": metrics.MedianAngle, **within}
    )


def keypoints() -> Task:
    """Squared error of heat maps; distance in percent of the diagonal."""
    return Task("keypoints", functional.mse_loss, metrics.KeypointError, "regression")


def _cross_entropy(scores: Tensor, classes: Tensor) -> Tensor:
    return functional.cross_entropy(scores, classes, ignore_index=metrics.VOID, reduction="sum") / _count(
        classes != metrics.VOID
    )


def _absolute_error(depths: Tensor, target: Tensor) -> Tensor:
    there = target > 0
    return ((depths - target).abs() * there).sum() / _count(there)


def _squared_error(depths: Tensor, target: Tensor) -> Tensor:
    there = target > 0
    return ((depths - target).square() * there).sum() / _count(there)


def _cosine(vectors: Tensor, target: Tensor) -> Tensor:
    (x, y, z), (u, v, w) = vectors.unbind(1), target.unbind(1)
    there = (target != 0).any(1)
    lengths = ((x * x + y * y + z * z) * (u * u + v * v + w * w)).clamp(min=1e-12).sqrt()
    return ((1 - (x * u + y * v + z * w) / lengths) * there).sum() / _count(there)


def _count(there: Tensor) -> Tensor:
    """Valid pixels; 1 if there are none, so that the loss is 0."""
    return there.sum().clamp(min=1)
