"""A furnished room with lights and a camera, from a random generator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from equipoise.lab.problems.indoor import furniture
from equipoise.lab.problems.indoor.furniture import WHITE, Item, box, hue
from equipoise.lab.problems.indoor.hung import hung
from equipoise.lab.problems.indoor.parts import Array, Material, Part, turned
from equipoise.lab.problems.indoor.walls import Wall, free


@dataclass(frozen=True)
class Light:
    """A square that shines.

    Attributes:
        centre: Its centre in metres.
        sides: Two half sides ``(2, 3)`` in metres.
        colour: Light at one metre, red, green and blue.
    """

    centre: Array
    sides: Array
    colour: Array


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Attributes:
        position: Where it is, in metres.
        axes: Its axes to the right, up and backwards ``(3, 3)``, as rows.
        width: Width of the image at distance 1.
    """

    position: Array
    axes: Array
    width: float


@dataclass(frozen=True)
class Scene:
    """A room that can be rendered.

    Attributes:
        parts: Everything that can be seen.
        lights: The light sources.
        camera: The camera.
        corners: The corners of the room ``(8, 3)`` in metres, the four of the floor first, then those of the ceiling above
            them.
        ambient: Light from everywhere, red, green and blue.
    """

    parts: tuple[Part, ...]
    lights: tuple[Light, ...]
    camera: Camera
    corners: Array
    ambient: Array


def furnished(rng: Generator) -> Scene:
    """Draw a room: its size and paint, its furniture, its lights and the camera, which stands at the first wall."""
    w, d, h = rng.uniform(3.0, 5.2), rng.uniform(3.2, 5.2), rng.uniform(2.35, 2.8)
    walls = [
        Wall((0, 0), 0.0, w),
        Wall((w, 0), np.pi / 2, d),
        Wall((w, d), np.pi, w),
        Wall((0, d), -np.pi / 2, d),
    ]
    camera = _camera(rng, w, d)
    own = np.stack([camera.position[:2] - 0.45, camera.position[:2] + 0.45])
    ahead = camera.position[:2] - 0.7 * camera.axes[2, :2]
    taken = [own, np.stack([ahead - 0.35, ahead + 0.35])]
    parts = [*_shell(rng, w, d, h), *_furniture(rng, walls, (w, d), taken)]
    on_walls, window = hung(rng, walls, parts, h)
    lamp, lights = _lights(rng, w, d, h, window)
    floor = np.array([(0, 0, 0), (w, 0, 0), (w, d, 0), (0, d, 0)], dtype=float)
    corners = np.concatenate([floor, floor + np.array([0, 0, h])])
    ambient = rng.uniform(0.25, 0.45) * np.array([1.0, rng.uniform(0.93, 1.0), rng.uniform(0.85, 1.0)])
    return Scene((*parts, *on_walls, *lamp), lights, camera, corners, ambient)


def _camera(rng: Generator, w: float, d: float) -> Camera:
    """At the wall y = 0, at the height of a person's chest or eyes, looking into the room and a little down."""
    position = np.array([rng.uniform(0.15, 0.85) * w, rng.uniform(0.12, 0.4), rng.uniform(1.2, 1.65)])
    at = np.array([rng.uniform(0.3, 0.7) * w + 0.45 * (0.5 * w - position[0]), d, rng.uniform(0.55, 1.25)])
    back = (position - at) / np.linalg.norm(position - at)
    right = np.cross([0, 0, 1], back)
    right /= np.linalg.norm(right)
    roll = rng.normal(0, 0.015)
    up = np.cross(back, right)
    axes = np.stack([np.cos(roll) * right + np.sin(roll) * up, np.cos(roll) * up - np.sin(roll) * right, back])
    return Camera(position, axes, 2 * np.tan(np.radians(rng.uniform(62, 78)) / 2))


def _shell(rng: Generator, w: float, d: float, h: float) -> list[Part]:
    """Floor, ceiling, walls and skirting."""
    covers = (
        furniture.wood(rng),
        Material(hue(rng, 0.25, 0.55), "tiles", 0.4),
        Material(hue(rng, 0.35, 0.45), "mottled"),
    )
    cover = covers[rng.choice(3, p=(0.5, 0.2, 0.3))]
    if cover.texture == "plain":  # white boards are for furniture
        cover = replace(cover, colour=(0.45, 0.42, 0.38), texture="planks")
    paint, t = Material(hue(rng, 0.18, 0.75), rng.choice(["plain", "plain", "mottled", "stripes"]), 0.25), 0.1
    return [
        box("floor", cover, (-t, w + t), (-t, d + t), (-t, 0)),
        box("ceiling", Material((0.82, 0.82, 0.8), "plain"), (-t, w + t), (-t, d + t), (h, h + t)),
        box("wall", paint, (-t, w + t), (-t, 0), (0, h)),
        box("wall", paint, (-t, w + t), (d, d + t), (0, h)),
        box("wall", paint, (-t, 0), (0, d), (0, h)),
        box("wall", paint, (w, w + t), (0, d), (0, h)),
        *(box("wall", WHITE, (x, x + 0.015), (0, d), (0, 0.09)) for x in (0, w - 0.015)),
        box("wall", WHITE, (0, w), (d - 0.015, d), (0, 0.09)),
    ]


def _furniture(rng: Generator, walls: list[Wall], size: tuple[float, float], taken: list[Array]) -> list[Part]:
    """Items along the walls that the camera sees, and a table or a rug in the middle."""
    kind = rng.choice(list(furniture.ROOMS))
    parts = list(_middle(rng, kind, size, taken))
    for build in furniture.ROOMS[kind]:
        item = build(rng)
        for _ in range(12):
            wall = walls[rng.choice([1, 2, 2, 3])]
            if wall.length < item.width + 0.1:
                continue
            x = rng.uniform(item.width / 2 + 0.03, wall.length - item.width / 2 - 0.03)
            rectangle = wall.rectangle(x, 0.02, item.width, item.depth)
            if free(rectangle, taken, size):
                taken.append(rectangle)
                parts += wall.placed(item.parts, x, 0.02)
                break
    return parts


def _middle(rng: Generator, kind: str, size: tuple[float, float], taken: list[Array]) -> Iterator[Part]:
    """A rug, and a dining table with chairs or a coffee table, in the middle of the room."""
    w, d = size
    x, y = w / 2 + rng.uniform(-0.3, 0.3), d * rng.uniform(0.5, 0.62)
    if rng.uniform() < 0.5:
        rug = Material(hue(rng, 0.5, 0.5), rng.choice(["stripes", "checks", "blocks"]), rng.uniform(0.1, 0.4))
        half = rng.uniform(0.7, 1.1), rng.uniform(0.6, 0.9)
        yield box("floor", rug, (x - half[0], x + half[0]), (y - half[1], y + half[1]), (0, 0.012))
    if kind == "dining room":
        table = furniture.table(rng)
        rectangle = Wall((x, y), 0.0, 0.0).rectangle(0, -0.55, table.width + 0.3, table.depth + 1.1)
        if free(rectangle, taken, size):
            taken.append(rectangle)
            yield from Wall((x, y), 0.0, 0.0).placed(table.parts, 0)
            yield from _chairs(rng, table, x, y)
    elif kind == "living room":
        table = furniture.coffee_table(rng)
        rectangle = Wall((x, y), 0.0, 0.0).rectangle(0, 0, table.width, table.depth)
        if free(rectangle, taken, size):
            taken.append(rectangle)
            yield from Wall((x, y), 0.0, 0.0).placed(table.parts, 0)


def _chairs(rng: Generator, table: Item, x: float, y: float) -> Iterator[Part]:
    """Chairs of one kind at the long sides of a table."""
    model = furniture.chair(rng)
    for side in (-1, 1):
        for place in (-table.width / 4, table.width / 4):
            if rng.uniform() < 0.85:
                angle = np.pi * (side == 1) + rng.normal(0, 0.12)
                back = table.depth / 2 + side * (table.depth / 2 + rng.uniform(0.2, 0.45))
                for part in model.parts:
                    yield part.moved(angle, (x + place, y + back, 0))


def _lights(rng: Generator, w: float, d: float, h: float, window: Part | None) -> tuple[list[Part], tuple[Light, ...]]:
    """A lamp at the ceiling, and daylight through the window."""
    x, y = w / 2 + rng.uniform(-0.4, 0.4), d / 2 + rng.uniform(-0.4, 0.4)
    warm = np.array([1.0, rng.uniform(0.85, 0.95), rng.uniform(0.65, 0.9)])
    lit = Material((1.0, 0.97, 0.9), "light")
    lamp = Part("objects", (0.36, 0.36, 0.07), (x, y, h - 0.035), lit, "cylinder")
    lights = [
        Light(np.array([x, y, h - 0.12]), np.array([[0.18, 0, 0], [0, 0.18, 0]]), rng.uniform(1.5, 3.5) * warm),
    ]
    if window is not None:
        inward = turned(np.array([0.0, 1.0]), window.turn)
        along = turned(np.array([1.0, 0.0]), window.turn) * window.size[0] / 2
        centre = np.array(window.centre) + 0.2 * np.array([*inward, 0])
        sides = np.array([[*along, 0], [0, 0, window.size[2] / 2]])
        lights.append(Light(centre, sides, rng.uniform(1.5, 4.5) * np.array([0.85, 0.93, 1.0])))
    return [lamp], tuple(lights)
