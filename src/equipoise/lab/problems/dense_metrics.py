"""The nine metrics of the field for segmentation, depth and surface normals, and the error of keypoints.

They are defined as in the code of MTAN (Liu, Johns and Davison 2019, "End-to-end multi-task learning with attention", CVPR),
which papers on NYUv2 use, but over all pixels of a split rather than as a mean over images or batches.

Shape:
    B images of H x W pixels. Classes: scores ``(B, C, H, W)`` and numbers ``(B, H, W)``, -1 where there is none. Depth:
    ``(B, 1, H, W)``, 0 where there is none. Normals: ``(B, 3, H, W)``, 0 where there is none. Heat maps: ``(B, K, H, W)``.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

VOID = -1
"""The class of a pixel without a label."""

_BINS = 18_000
"""Bins of a hundredth of a degree."""


class _Mean(Metric):
    """A mean over pixels: a subclass adds to ``total`` and ``count``, in double precision."""

    higher_is_better: ClassVar[bool] = False  # type: ignore[misc]
    full_state_update: ClassVar[bool] = False  # type: ignore[misc]
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def compute(self) -> Tensor:
        """The mean; NaN without a valid pixel."""
        return self.total / self.count

    def _add(self, values: Tensor) -> None:
        self.total += values.double().sum()
        self.count += values.numel()


class PixelAccuracy(_Mean):
    """Share of the labelled pixels whose best score is that of their class."""

    higher_is_better: ClassVar[bool] = True  # type: ignore[misc]

    def update(self, scores: Tensor, classes: Tensor) -> None:
        """Take a batch."""
        there = classes != VOID
        self._add((_best(scores) == classes)[there])


class MeanIoU(Metric):
    """Mean intersection over union of the classes that occur in the predictions or the labels; void pixels do not count.

    Args:
        num_classes: C.
    """

    higher_is_better: ClassVar[bool] = True  # type: ignore[misc]
    full_state_update: ClassVar[bool] = False  # type: ignore[misc]
    confusion: Tensor

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.add_state("confusion", torch.zeros(num_classes**2, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, classes: Tensor) -> None:
        """Take a batch."""
        there = classes != VOID
        pairs = self.num_classes * classes[there] + _best(scores)[there]
        self.confusion += torch.bincount(pairs, minlength=self.num_classes**2)

    def compute(self) -> Tensor:
        """The mean over classes; NaN without a labelled pixel."""
        confusion = self.confusion.reshape(self.num_classes, self.num_classes).double()
        both = confusion.diag()
        either = confusion.sum(0) + confusion.sum(1) - both
        return (both / either)[either > 0].mean()


class DepthAbsoluteError(_Mean):
    """Mean of ``|depth - target|`` in metres."""

    def update(self, depth: Tensor, target: Tensor) -> None:
        """Take a batch."""
        there = target > 0
        self._add((depth - target).abs()[there])


class DepthRelativeError(_Mean):
    """Mean of ``|depth - target| / target``, without unit."""

    def update(self, depth: Tensor, target: Tensor) -> None:
        """Take a batch."""
        there = target > 0
        self._add((depth - target).abs()[there] / target[there])


class DepthRMSError(_Mean):
    """Root of the mean squared error in metres: the depth error of the GradNorm paper."""

    def update(self, depth: Tensor, target: Tensor) -> None:
        """Take a batch."""
        there = target > 0
        self._add((depth - target)[there].square())

    def compute(self) -> Tensor:
        """The root of the mean; NaN without a valid pixel."""
        return super().compute().sqrt()


class MeanAngle(_Mean):
    """Mean angle between normals in degrees."""

    def update(self, normals: Tensor, target: Tensor) -> None:
        """Take a batch."""
        self._add(angles(normals, target))


class MedianAngle(Metric):
    """Median angle between normals in degrees, to a hundredth of a degree."""

    higher_is_better: ClassVar[bool] = False  # type: ignore[misc]
    full_state_update: ClassVar[bool] = False  # type: ignore[misc]
    histogram: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("histogram", torch.zeros(_BINS, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, normals: Tensor, target: Tensor) -> None:
        """Take a batch."""
        bins = (angles(normals, target) * (_BINS / 180)).long().clamp(max=_BINS - 1)
        self.histogram += torch.bincount(bins, minlength=_BINS)

    def compute(self) -> Tensor:
        """The middle of the bin in which the lower median lies; NaN without a valid pixel."""
        below = self.histogram.cumsum(0)
        if below[-1] == 0:
            return torch.full((), torch.nan, dtype=torch.float64, device=below.device)
        place = torch.searchsorted(below, (below[-1] + 1) // 2)
        return (place.double() + 0.5) * (180 / _BINS)


class AngleWithin(_Mean):
    """Share of the pixels whose normal is off by less than some degrees.

    Args:
        degrees: The bound; 11.25, 22.5 and 30 are the field's.
    """

    higher_is_better: ClassVar[bool] = True  # type: ignore[misc]

    def __init__(self, degrees: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.degrees = degrees

    def update(self, normals: Tensor, target: Tensor) -> None:
        """Take a batch."""
        self._add(angles(normals, target) < self.degrees)


class KeypointError(_Mean):
    """Distance between the highest points of two heat maps in percent of the image's diagonal.

    Keypoints that are not in the image, those with an empty target, do not count. It is the keypoint error of RoomNet (Lee et
    al. 2017, ICCV, section 4.1), which the GradNorm paper uses, but for the clipping of outliers, which is not stated there.
    """

    def update(self, maps: Tensor, target: Tensor) -> None:
        """Take a batch."""
        height, width = target.shape[2:]
        there = target.flatten(2).amax(2) > 0
        found, wanted = (_places(some, width)[there] for some in (maps, target))
        distance = (found - wanted).square().sum(1).sqrt()
        self._add(100 * distance / (height**2 + width**2) ** 0.5)


def angles(normals: Tensor, target: Tensor) -> Tensor:
    """Angles in degrees ``(P,)`` between the normals of the valid pixels, of any length."""
    there = (target != 0).any(1)
    x, y, z = (normals[:, axis][there] for axis in range(3))
    u, v, w = (target[:, axis][there] for axis in range(3))
    sine = ((y * w - z * v).square() + (z * u - x * w).square() + (x * v - y * u).square()).sqrt()
    return torch.atan2(sine, x * u + y * v + z * w).rad2deg()  # unlike an arc cosine, exact near 0 and 180 degrees


def _best(scores: Tensor) -> Tensor:
    return scores.max(1).indices  # argmax takes four times as long on the CPU


def _places(maps: Tensor, width: int) -> Tensor:
    """Row and column ``(B, K, 2)`` of the highest point of every map."""
    highest = maps.flatten(2).argmax(2)
    return torch.stack([highest // width, highest % width], dim=2).double()
