"""Objects on the walls: windows, a door, pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.random import Generator

from equipoise.lab.problems.indoor import furniture
from equipoise.lab.problems.indoor.furniture import METAL, WHITE, Item, box, hue
from equipoise.lab.problems.indoor.parts import Array, Material, Part
from equipoise.lab.problems.indoor.walls import Wall, overlap


def hung(rng: Generator, walls: list[Wall], parts: list[Part], h: float) -> tuple[list[Part], Part | None]:
    """Windows with curtains, a door and pictures on the walls, above the furniture there; and the pane of one window."""
    found: list[Part] = []
    pane: Part | None = None
    used: list[Array] = []
    extents = _extents(parts)
    kinds = ["window", "window", "door", "picture", "picture", "picture"]
    for kind in [kind for kind in kinds for _ in range(4)]:
        wall = walls[rng.choice([1, 2, 2, 3])]
        item, low, tall = _HUNG[kind](rng, h)
        if wall.length < item.width + 0.4 or len(used) == 6:
            continue
        x = rng.uniform(0.2 + item.width / 2, wall.length - item.width / 2 - 0.2)
        rectangle = wall.rectangle(x, 0, item.width, 0.1)
        if any(overlap(rectangle, other) for other in used) or _hidden(rectangle, low, low + tall, extents):
            continue
        if rng.uniform() < (0.8 if kind == "window" else 0.4):
            used.append(rectangle)
            placed = wall.placed(item.parts, x, 0.0, low)
            found += placed
            pane = placed[0] if kind == "window" and pane is None else pane
    return found, pane


def _picture(rng: Generator, h: float) -> tuple[Item, float, float]:
    w, tall = rng.uniform(0.4, 1.0), rng.uniform(0.35, 0.75)
    canvas = Material(
        hue(rng, 0.6, 0.6), rng.choice(["blocks", "blocks", "stripes", "mottled"]), rng.uniform(0.08, 0.3)
    )
    frame, low = furniture.wood(rng), min(rng.uniform(1.25, 1.6), h - tall - 0.1)
    parts = (
        box("picture", frame, (-w / 2, w / 2), (0, 0.025), (0, tall)),
        box("picture", canvas, (-w / 2 + 0.03, w / 2 - 0.03), (0.025, 0.03), (0.03, tall - 0.03)),
    )
    return Item(w, 0.03, parts), low, tall


def _window(rng: Generator, h: float) -> tuple[Item, float, float]:
    w, tall, low = rng.uniform(0.9, 1.7), rng.uniform(1.0, 1.35), rng.uniform(0.8, 0.95)
    sky = Material((rng.uniform(0.7, 0.95), rng.uniform(0.85, 1.0), 1.0), "light")
    curtain, bar = furniture.fabric(rng), 0.025
    curtain = replace(curtain, texture="stripes")
    frames = [(-w / 2, -w / 2 + 0.05), (-bar, bar), (w / 2 - 0.05, w / 2)]
    parts = [
        box("window", sky, (-w / 2, w / 2), (0, 0.01), (0, tall)),
        *(box("window", WHITE, x, (0, 0.05), (0, tall)) for x in frames),
        *(box("window", WHITE, (-w / 2, w / 2), (0, 0.05), z) for z in ((0, 0.05), (tall - 0.05, tall))),
    ]
    reach = w / 2
    if rng.uniform() < 0.6:
        reach = w / 2 + 0.3
        parts += [
            box("window", curtain, sorted((s * (w / 2 - 0.12), s * reach)), (0.05, 0.12), (-0.15, tall + 0.15))
            for s in (-1, 1)
        ]
    return Item(2 * reach, 0.12, tuple(parts)), low, tall


def _door(rng: Generator, h: float) -> tuple[Item, float, float]:
    leaf, tall = furniture.wood(rng), 2.0
    parts = (
        box("wall", WHITE, (-0.48, 0.48), (0, 0.03), (0, tall + 0.06)),
        box("wall", replace(leaf, texture="plain"), (-0.42, 0.42), (0.03, 0.045), (0, tall)),
        box("wall", METAL, (0.3, 0.4), (0.045, 0.08), (1.0, 1.03)),
    )
    return Item(0.96, 0.08, parts), 0.0, tall


def _extents(parts: list[Part]) -> Array:
    """The lower and upper ends ``(P, 2, 3)`` of the furniture among parts, somewhat less than a turned part takes."""
    solid = [part for part in parts if part.label not in ("wall", "floor", "ceiling")]
    centres = np.array([part.centre for part in solid]).reshape(-1, 3)
    reach = np.array([(min(part.size[:2]) / 2, min(part.size[:2]) / 2, part.size[2] / 2) for part in solid]).reshape(
        -1, 3
    )
    return np.stack([centres - reach, centres + reach], 1)


def _hidden(rectangle: Array, low: float, high: float, extents: Array) -> bool:
    """Whether furniture stands before a place on a wall, or within a hand of it."""
    lower, upper = np.array([*rectangle[0] - 0.16, low]), np.array([*rectangle[1] + 0.16, high])
    return bool(((extents[:, 0] < upper) & (lower < extents[:, 1])).all(1).any())


_HUNG = {"picture": _picture, "window": _window, "door": _door}
