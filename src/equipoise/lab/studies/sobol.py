"""Trials at Sobol's points, which do not depend on earlier results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from scipy.stats import qmc

T = TypeVar("T")


def sobol_points(dimensions: int, number: int) -> list[Point]:
    """The first points of Sobol's sequence but for its origin: the first lies in the middle of the space.

    In every single dimension ``2**n - 1`` points are a grid that leaves the ends out.
    """
    found = qmc.Sobol(dimensions, scramble=False).random_base2(number.bit_length())
    return [Point(row.tolist()) for row in found[1 : number + 1]]


class Point:
    """A point of the unit cube that is asked for settings as a trial of Optuna is.

    Args:
        coordinates: One for each setting, in the order in which they are asked for.
    """

    def __init__(self, coordinates: Sequence[float]) -> None:
        self._left = iter(coordinates)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number between two ends."""
        part = next(self._left)
        return float(low * (high / low) ** part) if log else low + part * (high - low)

    def suggest_categorical(self, name: str, choices: Sequence[T]) -> T:
        """One of some choices."""
        return choices[int(next(self._left) * len(choices))]
