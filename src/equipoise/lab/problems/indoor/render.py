"""A ray tracer: the image of a scene, and the class, depth and normal of every pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from equipoise.lab.extra import require
from equipoise.lab.problems.indoor.parts import CLASSES, TEXTURES, Array, triangles
from equipoise.lab.problems.indoor.scene import Scene

_SAMPLES = 4
_REACH = 1.2


@dataclass(frozen=True)
class View:
    """The image that the camera takes, and its labels.

    Attributes:
        image: Red, green and blue ``(H, W, 3)`` from 0 to 255.
        classes: Numbers into `CLASSES` ``(H, W)``.
        depth: Metres along the camera's axis ``(H, W)``.
        normals: Unit vectors ``(H, W, 3)`` along the camera's axes: to the right, up, and towards the camera.
        corners: Column and row of the room's corners ``(8, 2)`` in pixels, NaN for those out of sight of the lens.
    """

    image: NDArray[np.uint8]
    classes: NDArray[np.uint8]
    depth: Array
    normals: Array
    corners: Array


def render(scene: Scene, height: int, width: int, rng: Generator) -> View:
    """Trace rays through the middle of every pixel for the labels, and four scattered ones for the image."""
    world = _World(scene)
    middle = world.hits(_rays(scene, height, width, np.full((height * width, 2), 0.5)))
    axes = scene.camera.axes
    depth = -(middle.points - scene.camera.position) @ axes[2]
    light = np.zeros((height * width, 3))
    for i in range(_SAMPLES):
        within = (rng.uniform(size=(height * width, 2)) + np.array([i % 2, i // 2])) / 2
        light += world.shaded(world.hits(_rays(scene, height, width, within)), rng) / _SAMPLES
    image = 255 * (1 - np.exp(-1.1 * light)) ** (1 / 2.2) + rng.normal(0, 1.5, light.shape)
    return View(
        np.clip(image, 0, 255).round().astype(np.uint8).reshape(height, width, 3),
        world.classes[middle.parts].reshape(height, width),
        depth.reshape(height, width),
        (middle.normals @ axes.T).reshape(height, width, 3),
        _projected(scene, height, width),
    )


@dataclass(frozen=True)
class _Hits:
    """Where rays ended: points and normals ``(N, 3)``, and the number of the part ``(N,)``."""

    points: Array
    normals: Array
    parts: NDArray[np.intp]


class _World:
    """A scene made ready for rays."""

    def __init__(self, scene: Scene) -> None:
        meshes = [triangles(part) for part in scene.parts]
        starts = np.cumsum([0, *(len(vertices) for vertices, _ in meshes[:-1])])
        self.vertices = np.concatenate([vertices for vertices, _ in meshes]).astype(np.float32)
        self.faces = np.concatenate([faces + start for (_, faces), start in zip(meshes, starts, strict=True)])
        self.faces = self.faces.astype(np.int32)
        self.part_of_face = np.repeat(np.arange(len(meshes)), [len(faces) for _, faces in meshes])
        edges = self.vertices[self.faces].astype(float)
        normals = np.cross(edges[:, 1] - edges[:, 0], edges[:, 2] - edges[:, 0])
        self.face_normals = normals / np.linalg.norm(normals, axis=1, keepdims=True)
        self.embree = require("embreex.rtcore_scene", extra="data").EmbreeScene()
        require("embreex.mesh_construction", extra="data").TriangleMesh(self.embree, self.vertices, self.faces)
        parts = scene.parts
        self.scene = scene
        self.classes = np.array([CLASSES.index(part.label) for part in parts], dtype=np.uint8)
        self.centres = np.array([part.centre for part in parts])
        self.turns = np.array([part.turn for part in parts])
        self.colours = np.array([part.material.colour for part in parts])
        self.periods = np.array([part.material.period for part in parts])
        self.textures = np.array([TEXTURES.index(part.material.texture) for part in parts])

    def hits(self, rays: tuple[Array, Array]) -> _Hits:
        """Follow rays to the first surface that they meet; the room is closed, so all meet something."""
        origins, directions = rays
        found = self.embree.run(origins.astype(np.float32), directions.astype(np.float32), output=True)
        face = np.maximum(found["primID"], 0)
        normals = self.face_normals[face]
        away = np.einsum("ij,ij->i", normals, directions) > 0
        normals = np.where(away[:, None], -normals, normals)
        points = origins + np.minimum(found["tfar"], 1e3).astype(float)[:, None] * directions
        return _Hits(points, normals, self.part_of_face[face])

    def shaded(self, hits: _Hits, rng: Generator) -> Array:
        """The light ``(N, 3)`` that comes from points towards the camera."""
        start = hits.points + 1e-3 * hits.normals
        light = self.scene.ambient * self._openness(start, hits.normals, rng)[:, None]
        for lamp in self.scene.lights:
            on = lamp.centre + rng.uniform(-1, 1, (len(start), 2)) @ lamp.sides
            way = on - start
            distance = np.linalg.norm(way, axis=1)
            towards = way / distance[:, None]
            cosine = np.maximum(np.einsum("ij,ij->i", towards, hits.normals), 0)
            strength = np.where(self._blocked(start, towards, distance - 0.02), 0, cosine / (0.3 + distance**2))
            light = light + strength[:, None] * lamp.colour
        shines = (self.textures[hits.parts] == TEXTURES.index("light"))[:, None]
        return np.where(shines, 1.8 * self.colours[hits.parts], light * self._colour(hits))

    def _openness(self, start: Array, normals: Array, rng: Generator) -> Array:
        """The share of ambient light: less where something is near."""
        scattered = rng.normal(size=normals.shape)
        scattered /= np.linalg.norm(scattered, axis=1, keepdims=True)
        directions = normals + 0.98 * scattered
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        return np.where(self._blocked(start, directions, np.full(len(start), _REACH)), 0.45, 1.0)

    def _blocked(self, start: Array, directions: Array, reach: Array) -> NDArray[np.bool_]:
        found: NDArray[Any] = self.embree.run(
            start.astype(np.float32), directions.astype(np.float32), dists=reach.astype(np.float32), query="OCCLUDED"
        )
        return found >= 0

    def _colour(self, hits: _Hits) -> Array:
        """The colour ``(N, 3)`` of points, by the texture of their part."""
        u, v = self._places(hits)
        part = hits.parts
        number = part.astype(float)
        period = self.periods[part]
        a, b = np.floor(u / period), np.floor(v / period)
        shades = {
            "planks": 0.75
            + 0.35 * _random(b, np.floor(u / 1.1 + 0.7 * _random(b, number)), number)
            - 0.25 * _edge(v, period),
            "tiles": 0.9 + 0.2 * _random(a, b, number) - 0.4 * np.maximum(_edge(u, period), _edge(v, period)),
            "stripes": 1.05 - 0.35 * (a % 2),
            "checks": 1.05 - 0.4 * ((a + b) % 2),
            "mottled": 0.9 + 0.2 * _random(np.floor(u / 0.02), np.floor(v / 0.02), number),
        }
        shade = np.ones(len(u))
        for name, values in shades.items():
            shade = np.where(self.textures[part] == TEXTURES.index(name), values, shade)
        blocks = np.stack([_random(a, b, number + offset) for offset in (0.1, 0.2, 0.3)], 1)
        own = self.colours[part]
        is_blocks = (self.textures[part] == TEXTURES.index("blocks"))[:, None]
        return np.where(is_blocks, 0.4 * own + 0.6 * blocks**1.5, own * shade[:, None])

    def _places(self, hits: _Hits) -> tuple[Array, Array]:
        """Two coordinates of points on the surface of their part, in metres."""
        turn = self.turns[hits.parts]
        cos, sin = np.cos(turn), np.sin(turn)
        local, normal = hits.points - self.centres[hits.parts], hits.normals
        x, y = cos * local[:, 0] + sin * local[:, 1], cos * local[:, 1] - sin * local[:, 0]
        across = np.abs(cos * normal[:, 0] + sin * normal[:, 1]) > np.abs(cos * normal[:, 1] - sin * normal[:, 0])
        flat = np.abs(normal[:, 2]) > 0.7
        return np.where(flat | ~across, x, y), np.where(flat, y, local[:, 2])


def _random(*numbers: Array) -> Array:
    """A fixed number in [0, 1) for every combination of numbers."""
    factors = (12.9898, 78.233, 37.719)
    angle = sum(factor * number for factor, number in zip(factors, numbers, strict=False))
    return np.asarray(np.abs(np.sin(angle) * 43758.5453) % 1.0)


def _edge(along: Array, period: Array) -> Array:
    """1 near the edges of a pattern, else 0."""
    return (np.abs((along / period) % 1.0 - 0.5) > 0.47).astype(float)


def _rays(scene: Scene, height: int, width: int, within: Array) -> tuple[Array, Array]:
    """Rays ``(H W, 3)`` through every pixel at a place ``(H W, 2)`` within it."""
    camera = scene.camera
    rows, columns = np.divmod(np.arange(height * width), width)
    x = ((columns + within[:, 0]) / width - 0.5) * camera.width
    y = -((rows + within[:, 1]) / height - 0.5) * camera.width * height / width
    directions = np.stack([x, y, -np.ones(len(x))], 1) @ camera.axes
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return np.broadcast_to(camera.position, directions.shape), directions


def _projected(scene: Scene, height: int, width: int) -> Array:
    """Column and row of the room's corners, NaN outside the image."""
    camera = scene.camera
    seen = (scene.corners - camera.position) @ camera.axes.T
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = (seen[:, 0] / -seen[:, 2] / camera.width + 0.5) * width - 0.5
        rows = (0.5 - seen[:, 1] / -seen[:, 2] / (camera.width * height / width)) * height - 0.5
    places = np.stack([columns, rows], 1)
    inside = (seen[:, 2] < 0) & (places >= -0.5).all(1) & (places < np.array([width, height]) - 0.5).all(1)
    return np.where(inside[:, None], places, np.nan)
