"""Rendered indoor scenes with the dense tasks of the GradNorm paper."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from equipoise.lab.problem import Split, Splits, Task
from equipoise.lab.problems import dense
from equipoise.lab.problems.data_folder import data_folder
from equipoise.lab.problems.dense import DenseProblem
from equipoise.lab.problems.indoor.cache import Arrays, views

PEAK = 5.0
"""The height of a keypoint in its heat map: with it, the losses of all tasks are of one order."""


@dataclass(frozen=True, kw_only=True)
class Rooms(DenseProblem):
    """Segmentation, depth, normals and room keypoints of ray-traced indoor scenes: the tasks of NYUv2 without its licence.

    A room has walls, floor and ceiling, windows, a door and pictures, and the furniture of a bedroom, living room, study or
    dining room, all from primitive solids with random sizes, colours and textures; a lamp and a window give light with
    soft shadows. The thirteen classes are those of NYUv2. Rooms are drawn from a seed by ``trimesh`` and ``embreex``, which are
    under the MIT and the BSD licence; the images are yours.

    The keypoints are the corners of the room, as in room layout estimation, whether furniture hides them or not: one heat
    map each for the floor and the ceiling, left and right of the image's middle. A map is a Gaussian about the corner nearest
    to the middle, and 0 if there is none in that half.

    A split has rooms of its own, each drawn from the seed, the split and its number. Rendering the default 800 takes about
    two minutes on one core, once: they are kept in ``folder``. On another machine the same seed gives the same rooms up to
    rounding.

    Attributes:
        height: Rows of an image, a multiple of 32.
        width: Columns of an image, a multiple of 32.
        train_samples: Rooms for training.
        validation_samples: Rooms for validation.
        test_samples: Rooms for test.
        data_seed: Seed of the rooms.
        folder: Where rendered rooms are kept. None: the folder in the environment variable ``EQUIPOISE_DATA``, else one in
            the user's cache.

    Shape:
        Images ``(B, 3, H, W)``; segmentation ``(B, 13, H, W)``, depth ``(B, 1, H, W)``, normals ``(B, 3, H, W)`` in the axes of
        the camera (right, up, towards it), keypoints ``(B, 4, H, W)``, with H and W over ``output_reduction``.

    Units:
        Depth in metres along the camera's axis.

    Differs from the paper:
        Rooms are rendered, not photographed, and boxes, with 4 kinds of keypoints rather than 48; outputs have the size of the
        images unless ``output_reduction`` is 4.

    References:
        Chen et al. 2018, GradNorm, section 5.1. Lee et al. 2017, "RoomNet", ICCV. The idea of rendered rooms for these tasks:
        McCormac et al. 2017, "SceneNet RGB-D", ICCV.
    """

    evaluations: ClassVar[int] = 8

    steps: int = 2000
    batch_size: int = 8
    height: int = 96
    width: int = 128
    train_samples: int = 500
    validation_samples: int = 100
    test_samples: int = 200
    data_seed: int = 0
    folder: str | None = None

    def __post_init__(self) -> None:
        dense.check_size(height=self.height, width=self.width)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The three tasks of NYUv2, and the keypoints."""
        return dense.segmentation(), dense.depth(self.depth_loss), dense.normals(), dense.keypoints()

    def channels(self) -> dict[str, int]:
        """The number of outputs of every task."""
        return {**super().channels(), "keypoints": 4}

    def splits(self) -> Splits:
        """Read the rooms; those that are not there yet are rendered."""
        folder = Path(self.folder) if self.folder is not None else data_folder()
        sizes = (self.train_samples, self.validation_samples, self.test_samples)
        return Splits(
            *(
                self._split(views(folder, self.data_seed, number, size, self.height, self.width))
                for number, size in enumerate(sizes)
            )
        )

    def _split(self, arrays: Arrays) -> Split:
        images = torch.from_numpy(arrays["image"]).permute(0, 3, 1, 2).float()
        corners = torch.from_numpy(arrays["corners"])
        vectors = torch.from_numpy(arrays["normals"]).permute(0, 3, 1, 2).float()
        targets = {
            "segmentation": torch.from_numpy(arrays["classes"]).long(),
            "depth": torch.from_numpy(arrays["depth"].astype(np.float32)).unsqueeze(1),
            "normals": functional.normalize(vectors, dim=1),
            "keypoints": heat_maps(corners, self.height, self.width),
        }
        inputs = ((images - 127.5) / 64).contiguous()
        return Split(inputs, {name: self.reduced(values) for name, values in targets.items()})


def heat_maps(corners: Tensor, height: int, width: int) -> Tensor:
    """A Gaussian about the chosen corner of the floor and of the ceiling in each half of the image.

    Args:
        corners: Column and row ``(N, 8, 2)`` of the corners, NaN outside the image; the four of the floor first.
        height: Rows of the maps.
        width: Columns of the maps.

    Returns:
        ``(N, 4, H, W)``: floor left, floor right, ceiling left, ceiling right; `PEAK` at the pixel of the corner.
    """
    maps = [
        _gaussian(_nearest_to_middle(corners[:, of], width, right=right), height, width)
        for of in (slice(0, 4), slice(4, 8))
        for right in (False, True)
    ]
    return torch.stack(maps, dim=1)


def _nearest_to_middle(corners: Tensor, width: int, *, right: bool) -> Tensor:
    """Column and row ``(N, 2)`` of the corner of one half that is nearest to the middle column, NaN if there is none."""
    column = corners[..., 0] - (width - 1) / 2
    here = (column >= 0) if right else (column < 0)  # NaN is in neither
    distance = torch.where(here, column.abs(), torch.inf)
    best = distance.argmin(1)
    rows = torch.arange(len(corners))
    return torch.where(distance[rows, best].isfinite()[:, None], corners[rows, best], torch.nan)


def _gaussian(places: Tensor, height: int, width: int) -> Tensor:
    """Maps ``(N, H, W)``, cut off at three deviations."""
    column, row = places.round().unbind(1)
    squares = (torch.arange(height)[None, :, None] - row[:, None, None]) ** 2 + (
        torch.arange(width)[None, None, :] - column[:, None, None]
    ) ** 2
    spread = (height / 24) ** 2
    return torch.where(squares <= 9 * spread, PEAK * torch.exp(-squares / (2 * spread)), 0.0)
