"""The course of methods over the steps, for pictures."""

from __future__ import annotations

import statistics

from equipoise.lab.results.comparison import Comparison
from equipoise.lab.results.selection import normalised_loss

from ..pictures import Series

POINTS = 40


def curve(comparison: Comparison, label: str) -> Series:
    """The task-normalised test loss of a method at about 40 steps, the mean over its runs; as far as all of them went."""
    runs = list(comparison.runs[label].values())
    found = [dict(zip(record.evaluated_at, normalised_loss(record.test), strict=True)) for record in runs]
    common = [step for step in runs[0].evaluated_at if all(step in values for values in found)]
    steps = common[:: -(-len(common) // POINTS)]
    return Series(label, steps, [statistics.fmean(values[step] for values in found) for step in steps])
