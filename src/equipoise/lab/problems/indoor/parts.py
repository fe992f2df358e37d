"""The parts of furniture: boxes, cylinders and balls with a class and a material."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from equipoise.lab.extra import require

Array: TypeAlias = NDArray[np.floating[Any]]
Shape = Literal["box", "cylinder", "cone", "ball"]
Texture = Literal["plain", "planks", "tiles", "stripes", "checks", "blocks", "mottled", "light"]

TEXTURES: tuple[Texture, ...] = ("plain", "planks", "tiles", "stripes", "checks", "blocks", "mottled", "light")

CLASSES = (
    "bed",
    "books",
    "ceiling",
    "chair",
    "floor",
    "furniture",
    "objects",
    "picture",
    "sofa",
    "table",
    "tv",
    "wall",
    "window",
)
"""The thirteen classes of NYUv2, in their usual order."""


@dataclass(frozen=True)
class Material:
    """A colour with a texture.

    Attributes:
        colour: Red, green and blue, the shares of light that are scattered back; for ``"light"`` the light that is sent out.
        texture: How the colour varies over the surface.
        period: Size of the texture's pattern in metres.
    """

    colour: tuple[float, float, float]
    texture: Texture = "mottled"
    period: float = 0.3


@dataclass(frozen=True)
class Part:
    """One solid.

    Attributes:
        label: Its class.
        size: Extents along x, y and z before it is turned, in metres.
        centre: Its centre, in metres; z points up.
        material: Its material.
        shape: The solid that fills the extents.
        turn: Angle in radians by which it is turned about its vertical axis.
    """

    label: str
    size: tuple[float, float, float]
    centre: tuple[float, float, float]
    material: Material
    shape: Shape = "box"
    turn: float = 0.0

    def moved(self, angle: float, offset: Sequence[float]) -> Part:
        """The part after the item that it belongs to is turned by ``angle`` about the z axis and moved by ``offset``."""
        x, y = turned(np.array(self.centre[:2]), angle) + np.array(offset[:2])
        return replace(self, centre=(float(x), float(y), self.centre[2] + offset[2]), turn=self.turn + angle)


def turned(points: Array, angle: float) -> Array:
    """Points ``(..., 2)`` turned about the origin."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([cos * points[..., 0] - sin * points[..., 1], sin * points[..., 0] + cos * points[..., 1]], -1)


def triangles(part: Part) -> tuple[Array, NDArray[np.int32]]:
    """Vertices ``(V, 3)`` and faces ``(F, 3)`` of a part."""
    vertices, faces = _unit(part.shape)
    placed = vertices * np.array(part.size)
    placed[:, :2] = turned(placed[:, :2], part.turn)
    return placed + np.array(part.centre), faces


@cache
def _unit(shape: Shape) -> tuple[Array, NDArray[np.int32]]:
    """The solid that fills a cube of side 1 about the origin."""
    creation = require("trimesh.creation", extra="data")
    if shape == "box":
        mesh = creation.box()
    elif shape == "cylinder":
        mesh = creation.cylinder(radius=0.5, height=1, sections=24)
    elif shape == "cone":  # a cone of which the upper half is cut off, such as a lampshade
        mesh = creation.cylinder(radius=0.5, height=1, sections=24)
        mesh.vertices[mesh.vertices[:, 2] > 0, :2] *= 0.5
    else:
        mesh = creation.icosphere(subdivisions=2, radius=0.5)
    return np.asarray(mesh.vertices, dtype=float), np.asarray(mesh.faces, dtype=np.int32)
