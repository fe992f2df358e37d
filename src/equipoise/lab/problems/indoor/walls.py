"""Walls and the places along them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from equipoise.lab.problems.indoor.parts import Array, Part, turned

_MARGIN = 0.06


@dataclass(frozen=True)
class Wall:
    """One of the four walls, with x along it and y into the room.

    Attributes:
        corner: Where x is 0.
        angle: The direction of x in radians.
        length: Its length in metres.
    """

    corner: tuple[float, float]
    angle: float
    length: float

    def placed(self, parts: tuple[Part, ...], x: float, y: float = 0.0, z: float = 0.0) -> list[Part]:
        """Parts of an item that stands at ``x`` along the wall and ``y`` from it."""
        offset = (*(np.array(self.corner) + turned(np.array([x, y]), self.angle)), z)
        return [part.moved(self.angle, offset) for part in parts]

    def rectangle(self, x: float, y: float, width: float, depth: float) -> Array:
        """The lower and upper ends ``(2, 2)`` of a footprint in the room."""
        ends = turned(np.array([[x - width / 2, y], [x + width / 2, y + depth]]), self.angle) + np.array(self.corner)
        return np.stack([ends.min(0), ends.max(0)])


def free(rectangle: Array, taken: list[Array], size: tuple[float, float]) -> bool:
    """Whether a footprint is inside a room of some size and apart from those that are taken."""
    inside = (rectangle[0] >= -1e-6).all() and (rectangle[1] <= np.array(size) + 1e-6).all()
    return bool(inside) and not any(overlap(rectangle, other) for other in taken)


def overlap(one: Array, other: Array) -> bool:
    """Whether two footprints are nearer than a few centimetres."""
    return bool(((one[0] - _MARGIN < other[1]) & (other[0] < one[1] + _MARGIN)).all())
