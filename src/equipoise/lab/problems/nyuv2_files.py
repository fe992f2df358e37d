"""The files of NYUv2: the official labelled images, or the preprocessed arrays in common use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from equipoise.lab.extra import require

LABELLED = "nyu_depth_v2_labeled.mat"
MAPS = ("splits.mat", "classMapping40.mat", "class13Mapping.mat")
ARRAYS = ("image", "label", "depth", "normal")
_FOCAL, _CENTRE = (518.857901, 519.469611), (325.582449, 253.736166)
_REACH = 3


@dataclass(frozen=True)
class Images:
    """Images with their labels.

    Attributes:
        images: Red, green and blue from 0 to 1 ``(N, 3, H, W)``.
        classes: From 0 to 12, -1 where there is none ``(N, H, W)``.
        depth: Metres, 0 where there is none ``(N, 1, H, W)``.
        normals: Unit vectors, 0 where there is none ``(N, 3, H, W)``.
    """

    images: Tensor
    classes: Tensor
    depth: Tensor
    normals: Tensor


def read(folder: Path, height: int, width: int) -> tuple[Images, Images]:
    """The training and the test images, at a size.

    Raises:
        FileNotFoundError: The folder has the files of neither form; the message says which files to get and where to put them.
        ValueError: A file is of another form.
    """
    if (folder / "train" / "image").is_dir():
        return _arrays(folder / "train", height, width), _arrays(folder / "val", height, width)
    missing = [name for name in (LABELLED, *MAPS) if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(_WANTED.format(folder=folder, missing=", ".join(missing)))
    return _labelled(folder, height, width)


_WANTED = (
    "NYUv2 is not in {folder}. Either put the preprocessed arrays of MTAN (github.com/lorenmt/mtan, 795 and 654 images of "
    "288 x 384) there, as train/image/0.npy and val/image/0.npy with label, depth and normal beside image; or these files: "
    "nyu_depth_v2_labeled.mat and splits.mat from NYU (cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html), and, as the former "
    "has 894 classes, classMapping40.mat and class13Mapping.mat (github.com/ankurhanda/nyuv2-meta-data). Missing for that: "
    "{missing}. The setting path names another folder"
)


def _arrays(folder: Path, height: int, width: int) -> Images:
    """Files such as ``image/0.npy``, numbered from 0."""
    count = len(list((folder / "image").glob("*.npy")))
    if count == 0:
        raise FileNotFoundError(f"{folder}: wanted image/0.npy and so on, found none")
    found = [[_load(folder / name / f"{i}.npy") for name in ARRAYS] for i in range(count)]
    return _stacked([_sized(*one, height=height, width=width) for one in found])


def _load(path: Path) -> NDArray[Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}, but an image of its number")
    array: NDArray[Any] = np.load(path)
    channels = {"image": 3, "depth": 1, "normal": 3}.get(path.parent.name)
    if channels is not None and (array.ndim != 3 or array.shape[2] != channels):
        raise ValueError(f"{path}: wanted the shape (H, W, {channels}), found {array.shape}")
    return array


def _labelled(folder: Path, height: int, width: int) -> tuple[Images, Images]:
    """The official file, split and mapped to 13 classes by the files beside it."""
    h5py, loadmat = require("h5py", extra="data"), require("scipy.io").loadmat
    splits = loadmat(folder / "splits.mat")
    to_40 = loadmat(folder / "classMapping40.mat")["mapClass"].ravel()
    to_13 = loadmat(folder / "class13Mapping.mat")["classMapping13"][0][0][0].ravel()
    classes = np.concatenate([[-1], np.concatenate([[0], to_13])[to_40].astype(np.int64) - 1])
    with h5py.File(folder / LABELLED) as file:

        def part(numbers: Sequence[int]) -> Images:
            return _stacked([_official(file, number - 1, classes, height, width) for number in numbers])

        return part(splits["trainNdxs"].ravel().tolist()), part(splits["testNdxs"].ravel().tolist())


def _official(file: Any, number: int, classes: NDArray[np.int64], height: int, width: int) -> Images:
    """One image of the official file, whose arrays are in the order of MATLAB."""
    labels = file["labels"][number].T
    if labels.max() >= len(classes):
        raise ValueError(f"{LABELLED}: class {labels.max()} is not in classMapping40.mat, which has {len(classes) - 1}")
    image = file["images"][number].transpose(2, 1, 0) / 255
    depth = file["depths"][number].T.astype(np.float32)
    return _sized(image, classes[labels], depth[..., None], normals_of(depth), height=height, width=width)


def normals_of(depth: NDArray[np.float32]) -> NDArray[np.float32]:
    """Surface normals from depth, by the differences of points a few pixels apart.

    Args:
        depth: Metres ``(H, W)``, 0 where there is none, as the colour camera of the Kinect sees it at 480 x 640 pixels.

    Returns:
        Unit vectors ``(H, W, 3)`` along the camera's axes: to the right, up, and towards the camera; 0 at the border and
        where a depth is missing.
    """
    rows, columns = np.mgrid[0 : depth.shape[0], 0 : depth.shape[1]]
    right = (columns - _CENTRE[0]) / _FOCAL[0] * depth
    up = -(rows - _CENTRE[1]) / _FOCAL[1] * depth
    points = np.stack([right, up, -depth], -1).astype(np.float32)
    step = _REACH
    across = points[step:-step, 2 * step :] - points[step:-step, : -2 * step]
    down = points[2 * step :, step:-step] - points[: -2 * step, step:-step]
    normal = np.cross(down, across)
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    there = depth > 0
    whole = there[step:-step, 2 * step :] & there[step:-step, : -2 * step]
    whole &= there[2 * step :, step:-step] & there[: -2 * step, step:-step]
    found = np.zeros((*depth.shape, 3), np.float32)
    found[step:-step, step:-step] = np.where(whole[..., None], normal / np.maximum(length, 1e-12), 0)
    return found


def _sized(
    image: NDArray[Any], label: NDArray[Any], depth: NDArray[Any], normal: NDArray[Any], *, height: int, width: int
) -> Images:
    """One image with its labels at a size: the image is interpolated, the labels are those of the nearest pixel."""
    picture = torch.from_numpy(np.ascontiguousarray(image)).float().permute(2, 0, 1)[None]
    if picture.shape[2:] != (height, width):
        picture = functional.interpolate(picture, (height, width), mode="bilinear", antialias=True)
    rows = torch.arange(height) * image.shape[0] // height
    columns = torch.arange(width) * image.shape[1] // width

    def nearest(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array))[rows][:, columns]

    return Images(
        picture,
        nearest(label).long()[None],
        nearest(depth).float().permute(2, 0, 1)[None],
        nearest(normal).float().permute(2, 0, 1)[None],
    )


def _stacked(images: Sequence[Images]) -> Images:
    return Images(
        torch.cat([image.images for image in images]),
        torch.cat([image.classes for image in images]),
        torch.cat([image.depth for image in images]),
        torch.cat([image.normals for image in images]),
    )
