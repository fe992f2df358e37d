"""Furniture from a random generator. An item stands on the floor with its back at y = 0, its middle at x = 0, facing +y."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from numpy.random import Generator

from equipoise.lab.problems.indoor.parts import Material, Part

METAL = Material((0.35, 0.35, 0.36), "plain")
WHITE = Material((0.8, 0.8, 0.78), "plain")


@dataclass(frozen=True)
class Item:
    """Parts that stand together.

    Attributes:
        width: Extent along x in metres.
        depth: Extent along y in metres.
        parts: The parts.
    """

    width: float
    depth: float
    parts: tuple[Part, ...]


def hue(rng: Generator, saturation: float, value: float) -> tuple[float, float, float]:
    """A random hue with about that saturation and value."""
    return colorsys.hsv_to_rgb(rng.uniform(), saturation * rng.uniform(0.6, 1.2), value * rng.uniform(0.8, 1.1))


def wood(rng: Generator) -> Material:
    """Light, brown or white boards."""
    if rng.uniform() < 0.2:
        return Material((0.75, 0.74, 0.7), "plain")
    light = rng.uniform(0.25, 0.7)
    return Material((light, light * rng.uniform(0.6, 0.75), light * rng.uniform(0.3, 0.5)), "planks", 0.12)


def fabric(rng: Generator) -> Material:
    """A cloth of any colour: plain, striped or checked."""
    texture = rng.choice(["mottled", "mottled", "stripes", "checks"])
    return Material(hue(rng, 0.5, 0.6), texture, rng.uniform(0.06, 0.2))


def box(label: str, material: Material, x: Sequence[float], y: Sequence[float], z: Sequence[float]) -> Part:
    """A box from its lower to its upper end along each axis."""
    size = (x[1] - x[0], y[1] - y[0], z[1] - z[0])
    return Part(label, size, ((x[0] + x[1]) / 2, (y[0] + y[1]) / 2, (z[0] + z[1]) / 2), material)


def legs(label: str, material: Material, x: float, y: Sequence[float], height: float, thick: float) -> list[Part]:
    """Four legs at x and -x, between two depths."""
    return [
        box(label, material, (s * x - thick / 2, s * x + thick / 2), (at - thick / 2, at + thick / 2), (0, height))
        for s in (-1, 1)
        for at in (y[0] + thick / 2, y[1] - thick / 2)
    ]


def bed(rng: Generator) -> Item:
    """Frame, mattress, blanket, headboard and pillows."""
    w, d, h = rng.uniform(0.9, 1.8), rng.uniform(1.9, 2.1), rng.uniform(0.4, 0.55)
    frame, sheet = wood(rng), Material((0.8, 0.8, 0.78))
    parts = [
        box("bed", frame, (-w / 2, w / 2), (0, d), (0.08, h - 0.2)),
        box("bed", sheet, (-w / 2 + 0.03, w / 2 - 0.03), (0.05, d - 0.03), (h - 0.2, h)),
        box("bed", fabric(rng), (-w / 2 - 0.01, w / 2 + 0.01), (0.65, d + 0.01), (h - 0.28, h + 0.04)),
        box("bed", frame, (-w / 2, w / 2), (0, 0.06), (0, h + rng.uniform(0.3, 0.6))),
    ]
    count = 2 if w > 1.3 else 1
    cloth = fabric(rng)
    for i in range(count):
        x = w * ((i + 0.5) / count - 0.5)
        parts.append(box("objects", cloth, (x - 0.28, x + 0.28), (0.12, 0.5), (h, h + 0.13)))
    return Item(w + 0.02, d + 0.01, tuple(parts))


def sofa(rng: Generator, width: float | None = None) -> Item:
    """Seat, back, arms and cushions."""
    w = rng.uniform(1.5, 2.3) if width is None else width
    d, cloth, arm, h = rng.uniform(0.8, 0.95), fabric(rng), rng.uniform(0.12, 0.22), rng.uniform(0.75, 0.9)
    parts = [
        box("sofa", cloth, (-w / 2, w / 2), (0, d), (0.08, 0.4)),
        box("sofa", cloth, (-w / 2, w / 2), (0, 0.25), (0.4, h)),
        *(box("sofa", cloth, sorted((s * w / 2, s * (w / 2 - arm))), (0, d), (0.1, 0.6)) for s in (-1, 1)),
    ]
    seats = max(1, round((w - 2 * arm) / 0.7))
    step = (w - 2 * arm) / seats
    for i in range(seats):
        x = -w / 2 + arm + i * step
        parts.append(box("sofa", cloth, (x + 0.01, x + step - 0.01), (0.25, d + 0.02), (0.4, 0.48)))
    if rng.uniform() < 0.6:
        x = rng.choice([-1, 1]) * (w / 2 - arm - 0.22)
        parts.append(box("objects", fabric(rng), (x - 0.2, x + 0.2), (0.25, 0.4), (0.48, 0.82)))
    return Item(w, d + 0.02, tuple(parts))


def armchair(rng: Generator) -> Item:
    """A sofa for one."""
    return sofa(rng, rng.uniform(0.85, 1.0))


def chair(rng: Generator) -> Item:
    """Seat, back and four legs."""
    w, h, frame = rng.uniform(0.42, 0.5), rng.uniform(0.43, 0.48), wood(rng)
    seat = frame if rng.uniform() < 0.5 else fabric(rng)
    parts = [
        box("chair", seat, (-w / 2, w / 2), (0, w), (h - 0.05, h)),
        box("chair", seat, (-w / 2, w / 2), (0, 0.04), (h + 0.12, h + rng.uniform(0.4, 0.55))),
        *legs("chair", frame, w / 2 - 0.02, (0, w), h - 0.05, 0.045),
        *(box("chair", frame, sorted((s * w / 2, s * (w / 2 - 0.04))), (0, 0.04), (h, h + 0.2)) for s in (-1, 1)),
    ]
    return Item(w, w, tuple(parts))


def table(rng: Generator, size: tuple[float, float, float] | None = None) -> Item:
    """A board on four legs, with things on it."""
    w, d, h = size if size else (rng.uniform(1.1, 1.8), rng.uniform(0.75, 0.95), rng.uniform(0.7, 0.77))
    top = wood(rng)
    parts = [
        box("table", top, (-w / 2, w / 2), (0, d), (h - 0.05, h)),
        *legs("table", top, w / 2 - 0.05, (0.02, d), h, 0.07),
    ]
    return Item(w, d, (*parts, *things(rng, w, d, h)))


def coffee_table(rng: Generator) -> Item:
    """A low table."""
    return table(rng, (rng.uniform(0.8, 1.2), rng.uniform(0.5, 0.65), rng.uniform(0.38, 0.45)))


def desk(rng: Generator) -> Item:
    """A table with drawers, a screen and a chair in front of it."""
    w, d, h = rng.uniform(1.1, 1.5), rng.uniform(0.6, 0.7), 0.74
    board = table(rng, (w, d, h)).parts
    drawers = box("furniture", wood(rng), (w / 2 - 0.45, w / 2 - 0.08), (0.02, d - 0.04), (0.05, h - 0.06))
    seat = chair(rng)
    pulled = [part.moved(3.14159, (rng.uniform(-0.2, 0), d + rng.uniform(0.25, 0.5), 0)) for part in seat.parts]
    return Item(w, d + 0.5, (*board, drawers, *_screen(rng, 0.55, h, 0.2), *pulled))


def wardrobe(rng: Generator) -> Item:
    """A high cupboard with two or three doors."""
    w, d, h, material = rng.uniform(0.9, 1.8), rng.uniform(0.5, 0.6), rng.uniform(1.8, 2.2), wood(rng)
    doors = 2 if w < 1.3 else 3
    parts, step = [box("furniture", material, (-w / 2, w / 2), (0, d), (0, h))], w / doors
    for i in range(doors):
        x = -w / 2 + i * step
        parts.append(box("furniture", material, (x + 0.015, x + step - 0.015), (d, d + 0.02), (0.08, h - 0.04)))
        handle = x + (step - 0.08 if i % 2 == 0 else 0.08)
        parts.append(box("furniture", METAL, (handle - 0.01, handle + 0.01), (d + 0.02, d + 0.05), (0.95, 1.15)))
    return Item(w, d + 0.05, tuple(parts))


def chest(rng: Generator) -> Item:
    """A chest of drawers with things on it."""
    w, d, h, material = rng.uniform(0.7, 1.2), rng.uniform(0.4, 0.5), rng.uniform(0.75, 1.0), wood(rng)
    parts, rows = [box("furniture", material, (-w / 2, w / 2), (0, d), (0, h))], 3
    for i in range(rows):
        low = 0.06 + i * (h - 0.08) / rows
        parts.append(
            box("furniture", material, (-w / 2 + 0.03, w / 2 - 0.03), (d, d + 0.02), (low, low + h / rows - 0.05))
        )
        parts.append(box("furniture", METAL, (-0.06, 0.06), (d + 0.02, d + 0.04), (low + 0.1, low + 0.12)))
    return Item(w, d + 0.04, (*parts, *things(rng, w, d, h)))


def bookshelf(rng: Generator) -> Item:
    """Boards with rows of books."""
    w, d, h, board = rng.uniform(0.7, 1.2), rng.uniform(0.28, 0.35), rng.uniform(1.5, 2.1), wood(rng)
    rows = round(h / 0.36)
    parts = [
        box("furniture", board, (-w / 2, w / 2), (0, 0.02), (0, h)),
        *(box("furniture", board, sorted((s * w / 2, s * (w / 2 - 0.03))), (0, d), (0, h)) for s in (-1, 1)),
        *(box("furniture", board, (-w / 2, w / 2), (0, d), (i * h / rows, i * h / rows + 0.025)) for i in range(rows)),
        box("furniture", board, (-w / 2, w / 2), (0, d), (h - 0.025, h)),
    ]
    for i in range(rows):
        parts += _row_of_books(rng, w, d, i * h / rows + 0.025, h / rows - 0.05)
    return Item(w, d, tuple(parts))


def _row_of_books(rng: Generator, w: float, d: float, z: float, height: float) -> list[Part]:
    """Books side by side that fill a part of a shelf."""
    parts, x, end = [], -w / 2 + 0.04, -w / 2 + 0.04 + (w - 0.08) * rng.uniform(0.5, 1.0)
    while x < end - 0.06:
        thick = rng.uniform(0.025, 0.06)
        book = Material(hue(rng, 0.7, 0.6), "plain")
        tall, deep = height * rng.uniform(0.65, 0.95), d * rng.uniform(0.75, 0.95)
        parts.append(box("books", book, (x, x + thick - 0.003), (0.03, deep), (z, z + tall)))
        x += thick
    return parts


def television(rng: Generator) -> Item:
    """A television on a low cupboard."""
    w, d, h = rng.uniform(1.2, 1.7), rng.uniform(0.38, 0.45), rng.uniform(0.4, 0.55)
    cupboard = box("furniture", wood(rng), (-w / 2, w / 2), (0, d), (0.05, h))
    return Item(w, d, (cupboard, *_screen(rng, rng.uniform(0.9, 1.2), h, d / 2)))


def _screen(rng: Generator, w: float, z: float, y: float) -> list[Part]:
    """A flat screen on its foot."""
    frame, on = Material((0.03, 0.03, 0.035), "plain"), rng.uniform() < 0.35
    glass = Material(hue(rng, 0.4, 0.5), "blocks", 0.12) if on else Material((0.05, 0.055, 0.07), "plain")
    h = w * 0.58
    return [
        box("tv", frame, (-w / 2, w / 2), (y - 0.025, y + 0.025), (z + 0.08, z + 0.08 + h)),
        box("tv", glass, (-w / 2 + 0.02, w / 2 - 0.02), (y + 0.025, y + 0.03), (z + 0.1, z + 0.06 + h)),
        box("tv", frame, (-0.05, 0.05), (y - 0.02, y + 0.02), (z, z + 0.1)),
        box("tv", frame, (-0.18, 0.18), (y - 0.09, y + 0.09), (z, z + 0.015)),
    ]


def nightstand(rng: Generator) -> Item:
    """A small cupboard with a lamp."""
    w, d, h = 0.45, 0.4, rng.uniform(0.45, 0.6)
    cupboard = box("furniture", wood(rng), (-w / 2, w / 2), (0, d), (0, h))
    return Item(w, d, (cupboard, *_lamp(rng, 0.0, d / 2, h, 0.2)))


def floor_lamp(rng: Generator) -> Item:
    """A lamp on a pole."""
    return Item(0.4, 0.4, tuple(_lamp(rng, 0.0, 0.2, 0.0, rng.uniform(1.2, 1.5))))


def _lamp(rng: Generator, x: float, y: float, z: float, pole: float) -> list[Part]:
    """Foot, pole and shade."""
    size = 0.22 + 0.1 * min(pole, 1.0)
    shade = Material((*hue(rng, 0.15, 0.85),), "plain")
    return [
        Part("objects", (0.6 * size, 0.6 * size, 0.03), (x, y, z + 0.015), METAL, "cylinder"),
        Part("objects", (0.035, 0.035, pole), (x, y, z + pole / 2), METAL, "cylinder"),
        Part("objects", (size, size, 0.8 * size), (x, y, z + pole + 0.3 * size), shade, "cone"),
    ]


def plant(rng: Generator) -> Item:
    """Leaves over a pot."""
    pot = Part("objects", (0.3, 0.3, 0.3), (0, 0.25, 0.15), Material(hue(rng, 0.4, 0.6), "plain"), "cylinder")
    green = Material((0.08, rng.uniform(0.2, 0.35), 0.07), "mottled", 0.1)
    leaves = [
        Part("objects", (0.3, 0.3, 0.35), (x, 0.25 + y, rng.uniform(0.45, 0.95)), green, "ball")
        for x, y in rng.uniform(-0.12, 0.12, (5, 2))
    ]
    return Item(0.5, 0.5, (pot, *leaves))


def things(rng: Generator, w: float, d: float, z: float) -> list[Part]:
    """A few small things on a surface: books, boxes, vases."""
    parts = []
    for x in rng.permutation([-0.32, 0.0, 0.32])[: rng.integers(0, 4)] * w:
        y, kind = rng.uniform(0.35, 0.65) * d, rng.integers(3)
        paint = Material(hue(rng, 0.6, 0.6), "plain")
        if kind == 0:
            parts.append(
                box("books", paint, (x - 0.11, x + 0.11), (y - 0.08, y + 0.08), (z, z + rng.uniform(0.03, 0.12)))
            )
        elif kind == 1:
            parts.append(
                box("objects", paint, (x - 0.1, x + 0.1), (y - 0.08, y + 0.08), (z, z + rng.uniform(0.1, 0.25)))
            )
        else:
            size, tall = rng.uniform(0.1, 0.16), rng.uniform(0.15, 0.3)
            parts.append(Part("objects", (size, size, tall), (x, y, z + tall / 2), paint, "cylinder"))
    return parts


ROOMS: dict[str, tuple[Callable[[Generator], Item], ...]] = {
    "bedroom": (bed, nightstand, wardrobe, chest, desk, plant, armchair, floor_lamp, bookshelf),
    "living room": (sofa, television, bookshelf, armchair, floor_lamp, plant, chest, sofa),
    "study": (desk, bookshelf, bookshelf, chest, armchair, plant, floor_lamp, wardrobe),
    "dining room": (chest, bookshelf, chair, chair, plant, television, wardrobe, floor_lamp),
}
"""The furniture along the walls of each kind of room, the most important first."""
