"""Rendered rooms, kept in files: each is rendered once."""

from __future__ import annotations

import hashlib
import os
import random
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.lab.files import written_whole
from equipoise.lab.problems.indoor.render import View, render
from equipoise.lab.problems.indoor.scene import furnished

_CHUNK = 10
"""Rooms in a file."""

Arrays = Mapping[str, NDArray[Any]]


def views(folder: Path, seed: int, split: int, samples: int, height: int, width: int) -> Arrays:
    """Images and labels of some rooms, from files where they are there, else rendered and written.

    Args:
        folder: Where the files are.
        seed: Seed of all rooms.
        split: Number of the split; the rooms of two splits are never the same.
        samples: How many rooms, N.
        height: Rows of an image.
        width: Columns of an image.

    Returns:
        ``image`` ``(N, H, W, 3)`` from 0 to 255; ``classes`` ``(N, H, W)``; ``depth`` ``(N, H, W)`` in metres, half precision;
        ``normals`` ``(N, H, W, 3)`` in units of 1/127; ``corners`` ``(N, 8, 2)``, column and row.
    """
    here = folder / f"rooms-{_version()}-{seed}-{height}x{width}"
    starts = list(range(0, samples, _CHUNK))
    found: dict[int, Arrays] = {}
    for start in random.Random(os.getpid()).sample(starts, len(starts)):  # so that two processes share the work
        path = here / f"{split}-{start}.npz"
        known = _read(path)
        if known is None:
            known = _rendered(seed, split, start, height, width)
            _write(path, known)
        found[start] = known
    return {name: np.concatenate([found[start][name] for start in starts])[:samples] for name in found[0]}


def _rendered(seed: int, split: int, start: int, height: int, width: int) -> Arrays:
    generators = [np.random.default_rng([seed, split, start + i]) for i in range(_CHUNK)]
    seen: list[View] = [render(furnished(rng), height, width, rng) for rng in generators]
    return {
        "image": np.stack([view.image for view in seen]),
        "classes": np.stack([view.classes for view in seen]),
        "depth": np.stack([view.depth for view in seen]).astype(np.float16),
        "normals": np.stack([view.normals * 127 for view in seen]).round().astype(np.int8),
        "corners": np.stack([view.corners for view in seen]).astype(np.float32),
    }


def _read(path: Path) -> Arrays | None:
    """The arrays of a file; None if there is no such file, or if it is damaged."""
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            arrays = {name: file[name] for name in file.files}
    except (FileNotFoundError, OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    digest = str(arrays.pop("digest", ""))
    return arrays if arrays and digest == _digest(arrays) else None


def _write(path: Path, arrays: Arrays) -> None:
    with written_whole(path) as file:
        np.savez_compressed(file, digest=np.array(_digest(arrays)), **arrays)  # type: ignore[arg-type]


def _digest(arrays: Arrays) -> str:
    content = hashlib.sha256()
    for name in sorted(arrays):
        content.update(name.encode())
        content.update(np.ascontiguousarray(arrays[name]).tobytes())
    return content.hexdigest()


def _version() -> str:
    """The digest of the source that renders: that of this folder."""
    content = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        content.update(path.read_bytes())
    return content.hexdigest()[:12]
