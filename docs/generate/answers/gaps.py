"""The gap between two methods on one problem or several: tables of gaps, and whether a gap closes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from equipoise.lab.results.comparison import Comparison
from equipoise.lab.results.markdown import escape
from equipoise.lab.results.selection import converged
from equipoise.lab.results.statistics import Estimate, estimate

from .contrasts import SIGNS, Contrast, against, block, contrast, interval
from .measures import losses
from .page import table

Pair = tuple[str, str]
"""A method and the one that it is compared with."""
INITIAL, GRADNORM, CLOSED = "1 / L(0)", "GradNorm", "closed form, balanced"
PLAIN, STARTED = "uncertainty", "uncertainty from log L(0)"
PCGRAD = "PCGrad"
METHODS = (INITIAL, PLAIN, STARTED, GRADNORM, CLOSED, PCGRAD)


def gap_table(pairs: Sequence[Pair], found: Mapping[str, Comparison], more: Sequence[Sequence[str]] = ()) -> str:
    """A row for each pair of methods, a column for each problem that has both, and further rows."""
    gaps = block(
        contrast(comparison, name, *pair)
        for pair in pairs
        for name, comparison in found.items()
        if comparison.runs.keys() >= {*pair}
    )
    lines = [["gap", *found], [":--", *["--:"] * len(found)]]
    for pair in pairs:
        cells = {each.problem: each for each in gaps if (each.method, each.reference) == pair}
        shown = [_marked(cells[name]) if name in cells else "" for name in found]
        lines.append([escape(f"{pair[0]} less {pair[1]}"), *map(escape, shown)])
    text = "\n".join(f"| {' | '.join(line)} |" for line in [*lines, *more])
    return (
        f"{text}\n\nPaired differences of the task-normalised test loss with 95 % intervals; above 0 the first method is "
        f"worse. ✗ worse and ✓ better: p < 0.05 after Holm's correction for these {len(gaps)}."
    )


def gaps_and_methods(pairs: Sequence[Pair], found: Mapping[str, Comparison], more: Sequence[Sequence[str]] = ()) -> str:
    """The table of gaps, and every method against equal weights."""
    return f"{gap_table(pairs, found, more)}\n\n{table(against(found, 'equal', methods=METHODS), found)}"


def _marked(gap: Contrast) -> str:
    sign = SIGNS[gap.outcome][0] if gap.outcome in SIGNS else gap.outcome
    return f"{interval(gap.difference)} {sign}".rstrip()


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
    """Whether a gap shrinks to a part of it or less, by a paired interval; afterwards it may be that of another pair."""
    gaps = []
    for comparison, labels in ((before, pair), (after, other or pair)):
        ours, theirs = (losses(comparison, label) for label in labels)
        gaps.append([ours[seed] - theirs[seed] for seed in sorted(ours)])
    first, second = (estimate(gap) for gap in gaps)
    beyond = estimate([late - left * early for early, late in zip(*gaps, strict=True)])
    if not math.isfinite(beyond.mean):
        return None, "A run diverged, so that the gap has no mean."
    text = (
        f"The gap goes from {interval(first)} to {interval(second)}; what is left beyond 1/{round(1 / left)} of it is "
    )
    text += f"{interval(beyond)}, n = {beyond.n}."
    return _shrinks(first, beyond), text


def _shrinks(first: Estimate, beyond: Estimate) -> bool | None:
    """Whether there was a gap, and nothing is left of it beyond the part; None where either is not told from 0."""
    if not first.excludes_zero or not beyond.excludes_zero:
        return None
    return first.mean > 0 and beyond.mean < 0
