"""The course of methods over the steps, for pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence

from equipoise.lab.results.comparison import Comparison
from equipoise.lab.results.selection import normalised_loss
from equipoise.lab.results.statistics import Estimate, estimate

from ..pictures import Series

POINTS = 40


def curves(comparison: Comparison, labels: Sequence[str]) -> list[Series]:
    """The task-normalised test loss of methods at about 40 steps, the mean over their runs; as far as all of them went.

    Intervals stand at a part of the steps, for each method at others, so that they can be told from one another.
    """
    found = []
    for place, label in enumerate(labels):
        steps, values = _course(comparison, label)
        found.append(Series(label, steps, [value.mean for value in values]))
        some = slice(len(labels) - place, None, len(labels))
        ends = [(value.mean - value.half_width, value.mean + value.half_width) for value in values[some]]
        found.append(Series(label, steps[some], [math.nan] * len(ends), ends=ends))
    return found


def _course(comparison: Comparison, label: str) -> tuple[list[int], list[Estimate]]:
    runs = list(comparison.runs[label].values())
    found = [dict(zip(record.evaluated_at, normalised_loss(record.test), strict=True)) for record in runs]
    common = [step for step in runs[0].evaluated_at if all(step in values for values in found)]
    steps = common[:: -(-len(common) // POINTS)]
    return steps, [estimate([float(values[step]) for values in found]) for step in steps]
