"""NYUv2: photographs of rooms with class, depth and normal of every pixel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch

from equipoise.lab.problem import Split, Splits, Task
from equipoise.lab.problems import dense
from equipoise.lab.problems.data_folder import data_folder
from equipoise.lab.problems.dense import DenseProblem
from equipoise.lab.problems.nyuv2_files import Images, read


@dataclass(frozen=True, kw_only=True)
class NYUv2(DenseProblem):
    """Segmentation in 13 classes, depth and surface normals of 1449 photographs of rooms, with the field's nine metrics.

    The defaults are the setting that papers since MTAN report: 795 images for training and 654 for test, of 288 x 384 pixels.
    That of the GradNorm paper is ``height=320, width=320, output_reduction=4, depth_loss="squared", batch_size=24,
    learning_rate=2e-5, steps=20000``.

    The data are not fetched: they come without a licence text, from pages that are to be read first. Two forms are read:
    the arrays that MTAN's authors preprocessed, or the official file ``nyu_depth_v2_labeled.mat`` with ``splits.mat``. That
    has 894 classes: ``classMapping40.mat`` and ``class13Mapping.mat`` must lie beside it to bring them to 13.
    Normals are in the arrays, along the axes of their authors; the official file has none, so they are computed from
    depth. Where data are absent, the error says which files to get and where to put them.

    The test images are the 654. The validation images are taken from the 795 by a permutation with a fixed seed.

    Attributes:
        path: The folder with the files. None: ``nyuv2`` in the folder that the environment variable ``EQUIPOISE_DATA`` names,
            or in the user's cache.
        height: Rows of an image, a multiple of 32.
        width: Columns of an image, a multiple of 32.
        validation_samples: Images that are taken from those for training.
        split_seed: Seed of the permutation that takes them.

    Shape:
        Images ``(B, 3, H, W)``; segmentation ``(B, 13, H, W)``, depth ``(B, 1, H, W)``, normals ``(B, 3, H, W)``, with H and W
        over ``output_reduction``.

    Units:
        Depth in metres, angles in degrees.

    Differs from the paper:
        Papers train on all 795 images and choose on the test images; here the test is read at the step that is best on
        validation. Images are neither cropped nor flipped. Nothing is pre-trained.

    References:
        Silberman et al. 2012, "Indoor segmentation and support inference from RGBD images", ECCV. Couprie et al. 2013, "Indoor
        semantic segmentation using depth information", ICLR: the 13 classes. Liu, Johns and Davison 2019, "End-to-end
        multi-task learning with attention", CVPR. Chen et al. 2018, GradNorm, section 5.1.
    """

    evaluations: ClassVar[int] = 8

    steps: int = 20_000
    batch_size: int = 2
    learning_rate: float = 1e-4
    capacity: Literal["small", "large"] = "large"
    path: str | None = None
    height: int = 288
    width: int = 384
    validation_samples: int = 95
    split_seed: int = 0

    def __post_init__(self) -> None:
        dense.check_size(height=self.height, width=self.width)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The three tasks of the field."""
        return dense.segmentation(), dense.depth(self.depth_loss), dense.normals()

    def splits(self) -> Splits:
        """Read the images, and take those for validation.

        Raises:
            FileNotFoundError: The data are absent.
            ValueError: ``validation_samples`` leaves no image for training.
        """
        folder = Path(self.path) if self.path is not None else data_folder() / "nyuv2"
        known, test = read(folder, self.height, self.width)
        count = len(known.images)
        if not 1 <= self.validation_samples < count:
            raise ValueError(f"validation_samples: wanted from 1 to {count - 1}, found {self.validation_samples}")
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.split_seed))
        train, validation = order[self.validation_samples :], order[: self.validation_samples]
        return Splits(
            self._split(known, train), self._split(known, validation), self._split(test, torch.arange(len(test.images)))
        )

    def _split(self, images: Images, rows: torch.Tensor) -> Split:
        targets = {"segmentation": images.classes, "depth": images.depth, "normals": images.normals}
        return Split(images.images[rows], {name: self.reduced(values[rows]) for name, values in targets.items()})
