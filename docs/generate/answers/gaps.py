"""The gap between two methods on one problem or several: tables of gaps, and whether a gap closes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from equipoise.lab.results.comparison import Comparison
from equipoise.lab.results.markdown import escape
from equipoise.lab.results.selection import converged
from equipoise.lab.results.statistics import Estimate, estimate

from .contrasts import SIGNS, Contrast, against, contrast, ends, interval
from .measures import losses
from .page import CORRECTION, table
from .predictions import inside

Pair = tuple[str, str]
"""A method and the one that it is compared with."""
INITIAL, GRADNORM, CLOSED = "1 / L(0)", "GradNorm", "closed form, balanced"
PLAIN, STARTED = "uncertainty", "uncertainty from log L(0)"
PCGRAD = "PCGrad"
METHODS = (INITIAL, PLAIN, STARTED, GRADNORM, CLOSED, PCGRAD)


def gap_table(pairs: Sequence[Pair], found: Mapping[str, Comparison], more: Sequence[Sequence[str]] = ()) -> str:
    """A row for each pair of methods, a column for each problem that has both, and further rows."""
    gaps = [
        contrast(comparison, name, *pair)
        for pair in pairs
        for name, comparison in found.items()
        if comparison.runs.keys() >= {*pair}
    ]
    lines = [["gap", *found], [":--", *["--:"] * len(found)]]
    for pair in pairs:
        cells = {each.problem: each for each in gaps if (each.method, each.reference) == pair}
        shown = [_marked(cells[name]) if name in cells else "" for name in found]
        lines.append([escape(f"{pair[0]} less {pair[1]}"), *map(escape, shown)])
    text = "\n".join(f"| {' | '.join(line)} |" for line in [*lines, *more])
    return (
        f"{text}\n\nPaired differences of the task-normalised test loss with 95 % intervals; above 0 the first method is "
        f"worse. ✗ worse and ✓ better: p < 0.05 after {CORRECTION}; ‡ a task goes the other way, or one task decides the mean."
    )


def gaps_and_methods(pairs: Sequence[Pair], found: Mapping[str, Comparison], more: Sequence[Sequence[str]] = ()) -> str:
    """The table of gaps, and every method against equal weights."""
    return f"{gap_table(pairs, found, more)}\n\n{table(against(found, 'equal', methods=METHODS), found)}"


def _marked(gap: Contrast) -> str:
    sign = SIGNS[gap.outcome][0] if gap.outcome in SIGNS else gap.outcome
    return f"{interval(gap.difference)} {sign}{'‡' if gap.hides else ''}".rstrip()


def at_rest(comparison: Comparison) -> str:
    """How many of the final runs have come to rest."""
    states = [state for record in comparison.records if (state := converged(record)) is not None]
    return f"{sum(states)} of {len(states)}"


def of_gradnorm(comparison: Comparison) -> Estimate:
    """The gap of GradNorm to 1 / L(0)."""
    return contrast(comparison, "", GRADNORM, INITIAL).difference


def closed(
    pair: Pair, before: Comparison, after: Comparison, left: float, other: Pair | None = None
) -> tuple[bool | None, str]:
    """Whether a gap shrinks to a part of it or less; afterwards it may be that of another pair.

    The interval of what is left beyond this part decides, seed by seed.
    """
    gaps = []
    for comparison, labels in ((before, pair), (after, other or pair)):
        ours, theirs = (losses(comparison, label) for label in labels)
        gaps.append([ours[seed] - theirs[seed] for seed in sorted(ours)])
    first, second = (estimate(gap) for gap in gaps)
    shrunk = estimate([one - other for one, other in zip(*gaps, strict=True)])
    if not math.isfinite(shrunk.mean):
        return None, "A run diverged, so that the gap has no mean."
    text = f"The gap goes from {interval(first)} to {interval(second)}, by {interval(shrunk)}, n = {shrunk.n}"
    if ends(first).low <= 0:
        return None, f"{text}: before there was no gap that can be told."
    beyond = estimate([after - left * before for before, after in zip(*gaps, strict=True)])
    text += f"; less {left:.2g} of the gap before it is {interval(beyond)}."
    return inside([ends(beyond)], -math.inf, 0.0), text
